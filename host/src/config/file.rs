//! Owns the file as written: which sections there are, their fields and their defaults, and
//! the rules between sections.
//!
//! Guarantees that a [`Config`] leaves only when nothing at all was reported. The fields of a
//! `[[consumer]]` are read next door.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;
use url::Url;

use super::consumer::{self, Neighbours};
use super::problem::{Problem, Problems};
use super::reader::{Reader, Reported, Table, Value};
use super::rule::Invalid;
use super::{
    Admin, Broker, BrokerKind, Config, Consumer, Host, Log, LogFormat, Outside, Secret, Store,
    StoreKind,
};

pub(super) fn read(path: &Path, text: &str, outside: &dyn Outside) -> Result<Config, Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(Problems::new(
            path,
            text,
            errors.iter().map(|error| syntax(error, text)).collect(),
        ));
    }
    let reader = Reader::new(path.parent().unwrap_or(Path::new("")), outside);
    let config = config(path, reader.root(&document));
    let problems = reader.into_problems();
    match config {
        Ok(config) if problems.is_empty() => Ok(config),
        _ => Err(Problems::new(path, text, problems)),
    }
}

fn syntax(error: &toml::de::Error, text: &str) -> Problem {
    let at = error.span().unwrap_or(text.len()..text.len());
    Problem::new(at, "this is not valid TOML").label(error.message())
}

fn config(path: &Path, mut file: Table<'_>) -> Result<Config, Reported> {
    let store = file.section("store", store);
    let broker = file.section("broker", |table| broker(table, store.as_ref().ok()));
    let health = file.section("health", |mut table| {
        let listen = listen(&mut table, 9471);
        table.finish();
        listen
    });
    let admin = file.section("admin", |table| admin(table, health.as_ref().ok()));
    let log = file.section("log", log);
    let host = file.section("host", host);
    let sqlite = store
        .as_ref()
        .is_ok_and(|store| matches!(store.kind, StoreKind::Sqlite { .. }));
    let embedded = broker
        .as_ref()
        .is_ok_and(|broker| matches!(broker.kind, BrokerKind::Embedded));
    let mut neighbours = Neighbours::new(sqlite, embedded);
    let consumers = file.tables("consumer", |table| consumer::read(table, &mut neighbours));
    if let (Ok(store), Ok(consumers)) = (&store, &consumers) {
        enough_connections(&file, store, consumers);
    }
    file.finish();
    Ok(Config {
        path: path.to_owned(),
        store: store?,
        broker: broker?,
        health: health?,
        admin: admin?,
        log: log?,
        host: host?,
        consumers: consumers?,
    })
}

fn store(mut table: Table<'_>) -> Result<Store, Reported> {
    let default = StoreKind::Sqlite {
        path: table.reader.resolve_path("hapax.db"),
    };
    let kind = table.or("url", default, |url| store_kind(&url));
    let servers = matches!(kind, Ok(StoreKind::Postgres { .. }));
    let schema = table.or("schema", "public".to_owned(), |schema| {
        schema.parse(identifier)
    });
    let migrate = table.or("migrate", !servers, |migrate| migrate.boolean());
    let max_connections = table.optional("max-connections", |max| max.integer(1..=10_000));
    let statement_timeout = table.or("statement-timeout", seconds(5), |timeout| {
        timeout.duration(TIMEOUTS)
    });
    let lock_timeout = table.or("lock-timeout", seconds(2), |timeout| {
        timeout.duration(TIMEOUTS)
    });
    table.finish();
    Ok(Store {
        kind: kind?,
        schema: schema?,
        migrate: migrate?,
        max_connections: max_connections?,
        statement_timeout: statement_timeout?,
        lock_timeout: lock_timeout?,
    })
}

fn store_kind(url: &Value<'_>) -> Result<StoreKind, Reported> {
    const FORMS: &str = "write `sqlite:FILE` or `postgres://USER:PASSWORD@HOST/DATABASE`";
    url.parse(|text| match text.split_once(':') {
        Some(("sqlite", file)) => Ok(StoreKind::Sqlite {
            path: url.reader.resolve_path(sqlite_file(file)?),
        }),
        Some(("postgres" | "postgresql", _)) => match Url::parse(text) {
            Ok(parsed) if !parsed.cannot_be_a_base() => Ok(StoreKind::Postgres {
                url: Secret::url(text),
            }),
            Ok(_) => Err(Invalid::new("`//` is missing after `postgres:`", FORMS)),
            Err(error) => Err(Invalid::new(error.to_string(), UNESCAPED)),
        },
        Some(("mysql" | "mariadb", _)) => Err(Invalid::new(
            "MySQL and MariaDB come with a later version",
            "this version keeps its ledger in `sqlite:` or `postgres:`",
        )),
        Some(_) => Err(Invalid::new("unknown kind of store", FORMS)),
        None => Err(Invalid::new("not a URL", FORMS)),
    })
}

/// The file in `sqlite:FILE` or `sqlite://FILE`. Connection options are the host's business:
/// its promise depends on them.
fn sqlite_file(file: &str) -> Result<&str, Invalid> {
    const FORM: &str =
        "write `sqlite:FILE`, where FILE starts from the directory of this configuration";
    let file = file.strip_prefix("//").unwrap_or(file);
    match file {
        "" => Err(Invalid::new("names no file", FORM)),
        ":memory:" => Err(Invalid::new(
            "a ledger in memory would forget every key at a restart",
            FORM,
        )),
        _ if file.contains('?') => Err(Invalid::new("a SQLite store takes no options", FORM)),
        _ => Ok(file),
    }
}

fn broker(mut table: Table<'_>, store: Option<&Store>) -> Result<Broker, Reported> {
    let kind = table.or("url", BrokerKind::Embedded, |url| url.parse(broker_kind));
    let heartbeat = table.or("heartbeat", seconds(20), |heartbeat| {
        let duration = heartbeat.duration(seconds(1)..=seconds(65_535))?;
        if duration.subsec_nanos() != 0 {
            let invalid = Invalid::new(
                "has a fraction of a second",
                "AMQP counts heartbeats in whole seconds",
            );
            return Err(heartbeat.invalid(invalid));
        }
        Ok(duration)
    });
    let connect_timeout = table.or("connect-timeout", seconds(10), |timeout| {
        timeout.duration(TIMEOUTS)
    });
    if let (
        Ok(BrokerKind::Embedded),
        Some(Store {
            kind: StoreKind::Postgres { .. },
            ..
        }),
    ) = (&kind, store)
    {
        let problem = table.problem(&["url"], "the embedded broker needs a SQLite store");
        table.reader.report(
            problem
                .label("keeps its queues in the store, which is `postgres:`")
                .help(
                    "set `broker.url` to your RabbitMQ, as in `amqp://USER:PASSWORD@HOST:5672/%2f`",
                ),
        );
    }
    table.finish();
    Ok(Broker {
        kind: kind?,
        heartbeat: heartbeat?,
        connect_timeout: connect_timeout?,
    })
}

fn broker_kind(text: &str) -> Result<BrokerKind, Invalid> {
    const FORMS: &str = "write `amqp://USER:PASSWORD@HOST:5672/%2f`, `amqps://…` or `embedded:`";
    match text.split_once(':') {
        Some(("embedded", "")) => Ok(BrokerKind::Embedded),
        Some(("embedded", _)) => Err(Invalid::new(
            "the embedded broker has no address",
            "write `embedded:`",
        )),
        Some(("amqp" | "amqps", _)) => match Url::parse(text) {
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => {
                Ok(BrokerKind::Amqp {
                    url: Secret::url(text),
                })
            }
            Ok(_) => Err(Invalid::new("names no host", FORMS)),
            Err(error) => Err(Invalid::new(error.to_string(), UNESCAPED)),
        },
        Some(_) => Err(Invalid::new("unknown kind of broker", FORMS)),
        None if text == "embedded" => {
            Err(Invalid::new("the colon is missing", "write `embedded:`"))
        }
        None => Err(Invalid::new("not a URL", FORMS)),
    }
}

fn admin(mut table: Table<'_>, health: Option<&Option<SocketAddr>>) -> Result<Admin, Reported> {
    let listen = listen(&mut table, 9470);
    let token = table.optional("token", |token| {
        token.parse(|text| match text {
            "" => Err(Invalid::new(
                "the token is empty",
                "make one with `openssl rand -hex 32`",
            )),
            _ if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::token(text)),
            _ => Err(Invalid::new(
                "holds a character that no HTTP header can carry",
                "use letters and digits",
            )),
        })
    });
    if let (Ok(Some(listen)), Ok(None)) = (&listen, &token)
        && !listen.ip().is_loopback()
    {
        let problem = table.problem(&["listen"], "`[admin]` has no `token`");
        table.reader.report(
            problem
                .label("reachable from other machines")
                .help("set `token = { env = \"HAPAX_ADMIN_TOKEN\" }`, or listen on 127.0.0.1"),
        );
    }
    if let (Ok(Some(listen)), Some(Some(health))) = (&listen, health)
        && listen == health
        && listen.port() != 0
    {
        let problem = table.problem(
            &["listen"],
            "`[admin]` and `[health]` listen on one address",
        );
        table.reader.report(
            problem
                .label("taken by `health.listen`")
                .help("choose another port"),
        );
    }
    table.finish();
    Ok(Admin {
        listen: listen?,
        token: token?,
    })
}

/// A loopback port unless told otherwise; `off` for none.
fn listen(table: &mut Table<'_>, port: u16) -> Result<Option<SocketAddr>, Reported> {
    let default = SocketAddr::from(([127, 0, 0, 1], port));
    table.or("listen", Some(default), |listen| {
        listen.parse(|text| match text {
            "off" => Ok(None),
            _ => text.parse().map(Some).map_err(|_| {
                let help = format!("write an IP address and a port, as in `{default}` or `0.0.0.0:{port}`, or `off`");
                Invalid::new("not an address to listen on", help)
            }),
        })
    })
}

fn log(mut table: Table<'_>) -> Result<Log, Reported> {
    let formats = [
        ("auto", LogFormat::Auto),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    let format = table.or("format", LogFormat::Auto, |format| format.choice(&formats));
    let filter = table.or("filter", "info".to_owned(), |filter| {
        filter.text().map(str::to_owned)
    });
    table.finish();
    Ok(Log {
        format: format?,
        filter: filter?,
    })
}

fn host(mut table: Table<'_>) -> Result<Host, Reported> {
    let name = table.optional("name", |name| {
        name.parse(|text| match text {
            "" => Err(Invalid::new(
                "the name is empty",
                "leave it out to use the machine's name",
            )),
            _ => Ok(text.to_owned()),
        })
    });
    let shutdown_timeout = table.or("shutdown-timeout", seconds(20), |timeout| {
        timeout.duration(TIMEOUTS)
    });
    let machine = table.reader.host_name();
    table.finish();
    Ok(Host {
        name: name?.unwrap_or(machine),
        shutdown_timeout: shutdown_timeout?,
    })
}

fn enough_connections(file: &Table<'_>, store: &Store, consumers: &[Consumer]) {
    let lanes: usize = consumers.iter().map(|consumer| consumer.lanes).sum();
    let Some(max) = store.max_connections else {
        return;
    };
    if lanes > max as usize {
        let problem = file.problem(
            &["store", "max-connections"],
            "`max-connections` is less than the lanes need",
        );
        file.reader.report(
            problem
                .label(format!("all consumers together have {lanes} lanes"))
                .help(
                    "each lane holds one connection: raise it, or give the consumers fewer `lanes`",
                ),
        );
    }
}

/// A name that no database needs to quote, so that it is the same in every statement.
fn identifier(text: &str) -> Result<String, Invalid> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if text.len() <= 63
        && text.chars().all(plain)
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
    {
        return Ok(text.to_owned());
    }
    Err(Invalid::new(
        "not a plain identifier",
        "use lower-case letters, digits and `_`, at most 63, and no digit first",
    ))
}

const UNESCAPED: &str =
    "percent-encode `/`, `@`, `:` and other special characters in the user and the password";

/// The range of whatever the host waits for.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
