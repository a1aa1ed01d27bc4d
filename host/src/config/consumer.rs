//! Owns the `[[consumer]]` table as written: its fields, their defaults and ranges, and the
//! rules between them and their surroundings.
//!
//! Guarantees that consumers of one file share neither a name nor a queue. Does not know what
//! the plugin behind a consumer needs.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::Problem;
use super::reader::{Entry, Reported, Table};
use super::rule::{Fingerprint, Invalid, KeySource, Pointer};
use super::units::{DURATION_FORMS, show_duration};
use super::value::Value;
use super::{
    Binding, Brake, Consumer, Declare, Grant, Idempotency, Limits, OnDuplicate, Order, QueueKind,
    Random, Retention, Retry, Target, Unroutable,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// AMQP carries names and routing keys as short strings.
const SHORT_STRING_BYTES: usize = 255;

/// What stands around a consumer in the file.
pub(super) struct Neighbours {
    sqlite: bool,
    embedded: bool,
    /// Where each name was used first.
    names: HashMap<String, Range<usize>>,
    queues: HashMap<String, Range<usize>>,
}

impl Neighbours {
    /// What could not be read is neither SQLite nor embedded: one problem does not cause others.
    pub(super) fn new(sqlite: bool, embedded: bool) -> Self {
        Self {
            sqlite,
            embedded,
            names: HashMap::new(),
            queues: HashMap::new(),
        }
    }
}

pub(super) fn read(
    mut table: Table<'_>,
    neighbours: &mut Neighbours,
) -> Result<Consumer, Reported> {
    let name = table.required("name", |name| name.parse(consumer_name));
    let queue = table.required("queue", |queue| queue.parse(filled_short_string));
    let plugin = table.required("plugin", |plugin| path(&plugin));
    let idempotency = table.or("idempotency", Idempotency::On, |idempotency| {
        idempotency.choice(&[("on", Idempotency::On), ("off", Idempotency::Off)])
    });
    let key = key(&mut table, idempotency);
    let partition = table.optional("partition", key_sources);
    let fingerprint = table.or("fingerprint", Fingerprint::Body, fingerprint);
    let prefetch = table.or("prefetch", 1024, |prefetch| prefetch.integer(1..=u16::MAX));
    let prefetch_bytes = table.or("prefetch-bytes", 64 * MIB, |bytes| {
        bytes.bytes(64 * KIB..=16 * GIB)
    });
    let batch = batch(&mut table, prefetch);
    let batch_bytes = table.or("batch-bytes", 4 * MIB, |bytes| bytes.bytes(1..=GIB));
    let batch_time = table.or("batch-time", 50 * MS, |time| {
        time.duration(MS..=60_000 * MS)
    });
    let lanes = lanes(&mut table, neighbours.sqlite);
    let retention = table.or("retention", Retention::For(7 * DAY), |retention| {
        retained(&retention)
    });
    let (max_message_bytes, max_parked_bytes) = body_bounds(&mut table);
    let grant = table.section("grant", grant);
    let targets = table.entries("targets", |entry| target(entry, neighbours.embedded));
    let limits = table.section("limits", limits);
    let retry = table.section("retry", retry);
    let random = table.or("random", Random::Seeded, |random| {
        random.choice(&[("seeded", Random::Seeded), ("secure", Random::Secure)])
    });
    let config: Result<BTreeMap<_, _>, _> = table.entries("config", |entry| {
        Ok(entry.value.resolve()?.text()?.to_owned())
    });
    let declare = table.optional("declare", |queue| declare(&queue, neighbours.embedded));
    let order = order(&mut table, idempotency);
    let on_duplicate = table.or("on-duplicate", OnDuplicate::Ack, |duplicate| {
        duplicate.choice(&[
            ("ack", OnDuplicate::Ack),
            ("reply", OnDuplicate::Reply),
            ("park", OnDuplicate::Park),
        ])
    });
    let park = table.optional("park", |park| {
        target_table(park.table()?, neighbours.embedded)
    });
    let brake = table.or("brake", Some(Brake::default()), |brake| {
        brake_or_off(&brake)
    });

    if let Ok(name) = &name {
        let why = "the name is the scope of a consumer's keys in the ledger";
        unique(&table, "name", name, &mut neighbours.names, why);
    }
    if let Ok(queue) = &queue {
        let why = "each message would reach only one of the two: give each consumer a queue of its own, bound to the same exchange";
        unique(&table, "queue", queue, &mut neighbours.queues, why);
    }
    table.finish();
    let key = key?;
    Ok(Consumer {
        name: name?,
        queue: queue?,
        plugin: plugin?,
        partition: partition?.unwrap_or_else(|| key.clone()),
        key,
        fingerprint: fingerprint?,
        prefetch: prefetch?,
        prefetch_bytes: prefetch_bytes?,
        batch: batch?,
        batch_bytes: batch_bytes?,
        batch_time: batch_time?,
        lanes: lanes?,
        retention: retention?,
        max_message_bytes: max_message_bytes?,
        max_parked_bytes: max_parked_bytes?,
        grant: grant?,
        targets: targets?,
        limits: limits?,
        retry: retry?,
        random: random?,
        idempotency: idempotency?,
        order: order?,
        on_duplicate: on_duplicate?,
        park: park?,
        brake: brake?,
        config: config?.into(),
        declare: declare?,
    })
}

fn unique(
    table: &Table<'_>,
    field: &'static str,
    value: &str,
    seen: &mut HashMap<String, Range<usize>>,
    why: &str,
) {
    let Some(at) = table.written(&[field]) else {
        return;
    };
    if let Some(first) = seen.get(value) {
        let title = format!("two consumers have the same `{field}`");
        let problem = Problem::new(at, title)
            .label("used again")
            .also(first.clone(), "used first");
        table.reader.report(problem.help(why));
    } else {
        seen.insert(value.to_owned(), at);
    }
}

/// Order needs keys: what is held is held under its key.
fn order(
    table: &mut Table<'_>,
    idempotency: Result<Idempotency, Reported>,
) -> Result<Order, Reported> {
    let strict = table.or("order", false, |order| {
        order.choice(&[("lane", false), ("strict", true)])
    });
    let max_held = table.or("max-held", 1000, |max| max.integer(1..=100_000));
    let (strict, max_held) = (strict?, max_held?);
    if !strict {
        return match table.written(&["max-held"]) {
            None => Ok(Order::Lane),
            Some(_) => {
                let title = "`max-held` is only for `order = \"strict\"`";
                let problem = table.problem_at(&["max-held"], title);
                Err(table
                    .reader
                    .report(problem.label("nothing is held").help("remove it")))
            }
        };
    }
    if matches!(idempotency, Ok(Idempotency::Off)) {
        let problem = table.problem_at(&["order"], "`order = \"strict\"` needs keys");
        return Err(table.reader.report(
            problem
                .label("without a key nothing can be held and found again")
                .help("remove `idempotency = \"off\"`"),
        ));
    }
    Ok(Order::Strict { max_held })
}

/// The brake's settings, or the word `off`.
fn brake_or_off(value: &Value<'_>) -> Result<Option<Brake>, Reported> {
    if !value.is_table() {
        return value.parse(|text| match text {
            "off" => Ok(None),
            _ => Err(Invalid::new(
                "not a brake",
                "write `{ parks = 100, probe = \"10s\", max-probe = \"5m\" }` or `off`",
            )),
        });
    }
    let default = Brake::default();
    let mut table = value.table()?;
    let parks = table.or("parks", default.parks, |parks| parks.integer(1..=1_000_000));
    let probe = table.or("probe", default.probe, |probe| probe.duration(MS..=HOUR));
    let max_probe = table.or("max-probe", default.max_probe, |max| {
        max.duration(MS..=HOUR)
    });
    if let (Ok(probe), Ok(max_probe)) = (&probe, &max_probe)
        && probe > max_probe
    {
        let title = "`consumer.brake.probe` is longer than `max-probe`";
        let problem = table.problem_at(&["probe"], title);
        let label = format!("`max-probe` is {}", show_duration(*max_probe));
        table
            .reader
            .report(problem.label(label).help("raise `max-probe`"));
    }
    table.finish();
    Ok(Some(Brake {
        parks: parks?,
        probe: probe?,
        max_probe: max_probe?,
    }))
}

fn key(
    table: &mut Table<'_>,
    idempotency: Result<Idempotency, Reported>,
) -> Result<Vec<KeySource>, Reported> {
    let optional = !matches!(idempotency, Ok(Idempotency::On));
    match table.optional("key", key_sources)? {
        Some(key) => Ok(key),
        None if optional => Ok(Vec::new()),
        None => Err(table
            .reader
            .report(table.missing("key").help(KeySource::FORMS))),
    }
}

fn key_sources(list: Value<'_>) -> Result<Vec<KeySource>, Reported> {
    list.some(|source| source.parse(str::parse))
}

fn pointers(list: Value<'_>) -> Result<Vec<Pointer>, Reported> {
    list.some(|pointer| pointer.parse(str::parse))
}

fn fingerprint(value: Value<'_>) -> Result<Fingerprint, Reported> {
    if value.is_table() {
        let mut table = value.table()?;
        let except = table.required("except", pointers);
        table.finish();
        return Ok(Fingerprint::Except(except?));
    }
    match value.as_text() {
        Some("body") => Ok(Fingerprint::Body),
        Some("none") => Ok(Fingerprint::None),
        Some(text) if !text.starts_with('/') => Err(value.invalid(Invalid::new(
            "not a fingerprint",
            "write `body`, `none`, a list of JSON pointers, or `{ except = [\"/sent_at\"] }`",
        ))),
        _ => pointers(value).map(Fingerprint::Pointers),
    }
}

/// A batch that was written must fit into the window; the default follows a small window.
fn batch(table: &mut Table<'_>, prefetch: Result<u16, Reported>) -> Result<usize, Reported> {
    let window = prefetch.unwrap_or(u16::MAX);
    let batch = table.or("batch", window.min(256), |batch| batch.integer(1..=1024))?;
    if batch > window {
        let title = format!("`{}.batch` is larger than `prefetch`", table.name);
        let problem = table
            .problem_at(&["batch"], title)
            .label("would never fill");
        let problem = match table.written(&["prefetch"]) {
            Some(at) => problem.also(at, "the broker sends no more than this ahead"),
            None => problem,
        };
        return Err(table
            .reader
            .report(problem.help("lower `batch`, or raise `prefetch`")));
    }
    Ok(batch.into())
}

/// What is handled can be parked, too.
fn body_bounds(table: &mut Table<'_>) -> (Result<u64, Reported>, Result<u64, Reported>) {
    let handled = table.or("max-message-bytes", 4 * MIB, |bytes| bytes.bytes(1..=GIB));
    let least = *handled.as_ref().unwrap_or(&1);
    let parked = table.or("max-parked-bytes", least.max(128 * MIB), |bytes| {
        bytes.bytes(1..=GIB)
    });
    if let Ok(parked) = parked
        && parked < least
    {
        let title = "`consumer.max-parked-bytes` is less than `max-message-bytes`";
        let problem = table.problem_at(&["max-parked-bytes"], title);
        let reported = table.reader.report(
            problem
                .label("what fails could not be kept")
                .help("raise it, or lower `max-message-bytes`"),
        );
        return (handled, Err(reported));
    }
    (handled, parked)
}

fn lanes(table: &mut Table<'_>, sqlite: bool) -> Result<usize, Reported> {
    let lanes = table.or("lanes", if sqlite { 1 } else { 4 }, |lanes| {
        lanes.integer(1..=64_u16)
    })?;
    if sqlite && lanes != 1 {
        let problem = table.problem_at(&["lanes"], "a SQLite store has one lane");
        return Err(table.reader.report(
            problem
                .label("SQLite has one writer")
                .help("remove it, or use a `postgres:` store"),
        ));
    }
    Ok(lanes.into())
}

fn retained(value: &Value<'_>) -> Result<Retention, Reported> {
    // A hundred years: beyond it, databases disagree about dates.
    let longest = 36_500 * DAY;
    match value.as_text() {
        Some("forever") => Ok(Retention::Forever),
        Some(text) if !text.starts_with(|c: char| c.is_ascii_digit()) => {
            let help = format!("{DURATION_FORMS}; or `forever`");
            Err(value.invalid(Invalid::new("not a duration", help)))
        }
        _ => value
            .duration(Duration::from_secs(1)..=longest)
            .map(Retention::For),
    }
}

fn grant(mut table: Table<'_>) -> Result<Grant, Reported> {
    let read = table.or("read", Vec::new(), |list| {
        list.list(|name| name.parse(granted_table))
    });
    let write = table.or("write", Vec::new(), |list| {
        list.list(|name| name.parse(granted_table))
    });
    let functions = table.or("functions", Vec::new(), |list| {
        list.list(|name| name.parse(filled))
    });
    table.finish();
    Ok(Grant {
        read: read?,
        write: write?,
        functions: functions?,
    })
}

fn target(entry: Entry<'_>, embedded: bool) -> Result<Target, Reported> {
    let named = short_string(entry.name).map_err(|invalid| {
        entry
            .value
            .reader
            .report(Problem::new(entry.at, "the name of a target is not valid").invalid(invalid))
    });
    let target = entry
        .value
        .table()
        .and_then(|table| target_table(table, embedded));
    named?;
    target
}

/// A place to publish to.
fn target_table(mut table: Table<'_>, embedded: bool) -> Result<Target, Reported> {
    let exchange = table.or("exchange", String::new(), |name| name.parse(short_string));
    let routing_key = table.or("routing-key", String::new(), |key| key.parse(short_string));
    let persistent = table.or("persistent", true, |persistent| persistent.boolean());
    let unroutable = table.or("unroutable", Unroutable::Keep, |unroutable| {
        unroutable.choice(&[("keep", Unroutable::Keep), ("drop", Unroutable::Drop)])
    });
    if let (Ok(exchange), Ok(routing_key)) = (&exchange, &routing_key) {
        if embedded && !exchange.is_empty() {
            let problem = table.problem_at(&["exchange"], "the embedded broker has no exchanges");
            let help = "write `exchange = \"\"` and the queue's name as `routing-key`, or set `broker.url` to your RabbitMQ";
            table.reader.report(
                problem
                    .label("only the default exchange, `\"\"`, exists")
                    .help(help),
            );
        }
        if exchange.is_empty() && routing_key.is_empty() {
            let problem = table.problem_at(&[], "the target leads nowhere");
            let help = "name an `exchange`, or a queue as `routing-key` of the default exchange";
            table.reader.report(
                problem
                    .label("neither `exchange` nor `routing-key`")
                    .help(help),
            );
        }
    }
    table.finish();
    Ok(Target {
        exchange: exchange?,
        routing_key: routing_key?,
        persistent: persistent?,
        unroutable: unroutable?,
    })
}

fn limits(mut table: Table<'_>) -> Result<Limits, Reported> {
    let default = Limits::default();
    let cpu = table.or("cpu", default.cpu, |cpu| cpu.duration(MS..=HOUR));
    let wall = table.or("wall", default.wall, |wall| wall.duration(MS..=HOUR));
    // A page of WebAssembly's memory, and all that 32 bits can address.
    let memory = table.or("memory", default.memory, |memory| {
        memory.bytes(64 * KIB..=4 * GIB)
    });
    let table_elements = table.or("table-elements", default.table_elements, |count| {
        count.integer(0..=10_000_000)
    });
    let hostcall_bytes = table.or("hostcall-bytes", default.hostcall_bytes, |bytes| {
        bytes.bytes(KIB..=4 * GIB)
    });
    let sql_statements = table.or("sql-statements", default.sql_statements, |count| {
        count.integer(0..=u32::MAX)
    });
    let sql_rows = table.or("sql-rows", default.sql_rows, |count| {
        count.integer(0..=u32::MAX)
    });
    let sql_bytes = table.or("sql-bytes", default.sql_bytes, |bytes| {
        bytes.bytes(0..=4 * GIB)
    });
    let sql_row_time = table.or("sql-row-time", default.sql_row_time, |time| {
        time.duration(MS..=HOUR)
    });
    let sql_row_bytes = table.or("sql-row-bytes", default.sql_row_bytes, |bytes| {
        bytes.bytes(MIB..=64 * GIB)
    });
    let outbox_messages = table.or("outbox-messages", default.outbox_messages, |count| {
        count.integer(0..=u32::MAX)
    });
    let outbox_bytes = table.or("outbox-bytes", default.outbox_bytes, |bytes| {
        bytes.bytes(0..=4 * GIB)
    });
    let log_bytes = table.or("log-bytes", default.log_bytes, |bytes| bytes.bytes(0..=GIB));
    table.finish();
    Ok(Limits {
        cpu: cpu?,
        wall: wall?,
        memory: memory?,
        table_elements: table_elements?,
        hostcall_bytes: hostcall_bytes?,
        sql_statements: sql_statements?,
        sql_rows: sql_rows?,
        sql_bytes: sql_bytes?,
        sql_row_time: sql_row_time?,
        sql_row_bytes: sql_row_bytes?,
        outbox_messages: outbox_messages?,
        outbox_bytes: outbox_bytes?,
        log_bytes: log_bytes?,
    })
}

fn retry(mut table: Table<'_>) -> Result<Retry, Reported> {
    let default = Retry::default();
    let max_attempts = table.or("max-attempts", default.max_attempts, |max| {
        max.integer(1..=100)
    });
    let delay = table.or("delay", default.delay, |delay| {
        delay.duration(MS..=30 * DAY)
    });
    let max_delay = table.or("max-delay", default.max_delay, |max| {
        max.duration(MS..=30 * DAY)
    });
    if let (Ok(delay), Ok(max_delay)) = (&delay, &max_delay)
        && delay > max_delay
    {
        let problem = table.problem_at(
            &["delay"],
            "`consumer.retry.delay` is longer than `max-delay`",
        );
        let label = format!("`max-delay` is {}", show_duration(*max_delay));
        table
            .reader
            .report(problem.label(label).help("raise `max-delay`"));
    }
    table.finish();
    Ok(Retry {
        max_attempts: max_attempts?,
        delay: delay?,
        max_delay: max_delay?,
    })
}

fn declare(value: &Value<'_>, embedded: bool) -> Result<Declare, Reported> {
    if embedded {
        let problem = value.problem("the embedded broker declares no queues");
        return Err(value.report(
            problem
                .label("its queues exist as soon as they are named")
                .help("remove it"),
        ));
    }
    let mut table = value.table()?;
    let kind = table.or("type", QueueKind::Quorum, |kind| {
        kind.choice(&[
            ("quorum", QueueKind::Quorum),
            ("classic", QueueKind::Classic),
        ])
    });
    let bind = table.tables("bind", |mut table| {
        let exchange = table.required("exchange", |name| name.parse(filled_short_string));
        let routing_key = table.or("routing-key", String::new(), |key| key.parse(short_string));
        table.finish();
        Ok(Binding {
            exchange: exchange?,
            routing_key: routing_key?,
        })
    });
    table.finish();
    Ok(Declare {
        kind: kind?,
        bind: bind?,
    })
}

fn consumer_name(text: &str) -> Result<String, Invalid> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Invalid::new(
        "not a name for a consumer",
        "use lower-case letters, digits, `-`, `_` and `.`, at most 64",
    ))
}

fn path(value: &Value<'_>) -> Result<PathBuf, Reported> {
    value
        .parse(filled)
        .map(|path| value.reader.resolve_path(path))
}

fn granted_table(text: &str) -> Result<String, Invalid> {
    let table = text.rsplit('.').next().unwrap_or(text);
    if table.to_ascii_lowercase().starts_with("hapax_") {
        return Err(Invalid::new(
            "the host's own table",
            "no handler may touch the ledger and its neighbours: use `state` and `outbox`",
        ));
    }
    filled(text)
}

fn filled(text: &str) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("names nothing", "write a name"));
    }
    Ok(text.to_owned())
}

fn filled_short_string(text: &str) -> Result<String, Invalid> {
    filled(text).and_then(|text| short_string(&text))
}

fn short_string(text: &str) -> Result<String, Invalid> {
    if text.len() > SHORT_STRING_BYTES {
        let label = format!("{} bytes long", text.len());
        return Err(Invalid::new(label, "AMQP allows 255 bytes at most"));
    }
    if text.contains(char::is_control) {
        return Err(Invalid::new(
            "holds a control character",
            "use printable characters",
        ));
    }
    Ok(text.to_owned())
}
