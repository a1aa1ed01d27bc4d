//! Owns the file as a whole: TOML or not, which sections there are, and what must fit together
//! between them.
//!
//! Guarantees that a [`Config`] leaves only when nothing at all was reported.

use std::path::Path;

use toml::de::DeTable;

use super::consumer::{self, Neighbours};
use super::problem::{Problem, Problems};
use super::reader::{Reader, Reported, Table};
use super::{
    Admin, Broker, BrokerKind, Config, Consumer, Health, Listen, Outside, Store, StoreKind, section,
};

pub(super) fn read(path: &Path, text: &str, outside: &dyn Outside) -> Result<Config, Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problems = errors.iter().map(|error| syntax(error, text)).collect();
        return Err(Problems::new(path, text, problems));
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
    let word = text[at.start..].starts_with(|c: char| c.is_alphabetic() || c == '/');
    let value = text[..at.start].trim_end().ends_with('=');
    let problem = Problem::new(at, "this is not valid TOML").label(error.message());
    // The parser takes a bare word for a number gone wrong.
    if word && value {
        return problem.label("not a value").help("put text in quotes");
    }
    problem
}

fn config(path: &Path, mut file: Table<'_>) -> Result<Config, Reported> {
    let store = file.section("store", section::store);
    let broker = file.section("broker", section::broker);
    let health = file.section("health", section::health);
    let admin = file.section("admin", section::admin);
    let log = file.section("log", section::log);
    let host = file.section("host", section::host);

    let mut embedded = matches!(
        &broker,
        Ok(Broker {
            kind: BrokerKind::Embedded,
            ..
        })
    );
    let sqlite = matches!(
        &store,
        Ok(Store {
            kind: StoreKind::Sqlite { .. },
            ..
        })
    );
    if embedded && store.is_ok() && !sqlite {
        file.reader.report(embedded_without_sqlite(&file));
        // What the consumers say is probably meant for the broker that is missing here.
        embedded = false;
    }
    if let (
        Ok(Health {
            listen: Some(health),
            ..
        }),
        Ok(Admin {
            listen: Some(Listen::Tcp(admin)),
            ..
        }),
    ) = (&health, &admin)
        && (health.ip() == admin.ip()
            || health.ip().is_unspecified()
            || admin.ip().is_unspecified())
        && health.port() == admin.port()
        && health.port() != 0
    {
        file.reader.report(one_port(&file));
    }
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

/// The store was named, or it would be SQLite; the broker may be the default.
fn embedded_without_sqlite(file: &Table<'_>) -> Problem {
    let title = "the embedded broker needs a SQLite store";
    let problem = match file.written(&["broker", "url"]) {
        Some(broker) => {
            Problem::new(broker, title).label("keeps its queues in the store, which is `postgres:`")
        }
        None => file
            .problem_at(&["store", "url"], title)
            .label("`broker.url` is not set, and its default is `embedded:`"),
    };
    problem.help("set `broker.url` to your RabbitMQ, as in `amqp://USER:PASSWORD@HOST:5672/%2f`")
}

/// The defaults differ, so at least one of the two was named.
fn one_port(file: &Table<'_>) -> Problem {
    let title = "`health.listen` and `admin.listen` have the same port";
    let problem = match file.written(&["admin", "listen"]) {
        Some(admin) => Problem::new(admin, title),
        None => file.problem_at(&["health", "listen"], title),
    };
    problem
        .label("taken by the other one")
        .help("choose another port, or write `off` for one of them")
}

fn enough_connections(file: &Table<'_>, store: &Store, consumers: &[Consumer]) {
    let lanes: usize = consumers.iter().map(|consumer| consumer.lanes).sum();
    if store
        .max_connections
        .is_some_and(|max| lanes > max as usize)
    {
        let title = "`store.max-connections` is less than the lanes need";
        let problem = file.problem_at(&["store", "max-connections"], title);
        file.reader.report(
            problem
                .label(format!("all consumers together have {lanes} lanes"))
                .help("each lane holds one connection: allow more, or give the consumers fewer `lanes`"),
        );
    }
}
