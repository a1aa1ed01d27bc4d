//! Owns the sections of the file other than `[[consumer]]`, as written: their fields, their
//! defaults and the forms of their values.
//!
//! Does not know one section from another: what must fit together is checked in `file`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::amqp;

use super::address;
use super::reader::{Reported, Table};
use super::rule::Invalid;
use super::value::Value;
use super::{
    Admin, Broker, BrokerKind, COMPILE_TIMEOUT, Health, Host, Listen, Log, LogFormat, Secret,
    Store, StoreKind,
};

pub(super) fn store(mut table: Table<'_>) -> Result<Store, Reported> {
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
        Some(("postgres" | "postgresql", _)) => {
            address::check(text)?;
            Ok(StoreKind::Postgres {
                url: Secret::url(text),
            })
        }
        Some(("mysql" | "mariadb", _)) => Err(Invalid::new(
            "MySQL and MariaDB come with a later version",
            "this version keeps its ledger in `sqlite:` or `postgres:`",
        )),
        Some((start, _)) if start.contains("//") => {
            address::check(text).and(Err(Invalid::new("not a URL", FORMS)))
        }
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

pub(super) fn broker(mut table: Table<'_>) -> Result<Broker, Reported> {
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
    let consumer_timeout = table.or(
        "consumer-timeout",
        Some(seconds(1800)),
        |timeout| match timeout.as_text() {
            Some("off") => Ok(None),
            _ => timeout
                .duration(seconds(1)..=seconds(30 * 86_400))
                .map(Some),
        },
    );
    table.finish();
    Ok(Broker {
        consumer_timeout: consumer_timeout?,
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
        Some(("amqp" | "amqps", _)) => {
            address::check(text)?;
            match amqp::url::parse(text) {
                Ok(_) => Ok(BrokerKind::Amqp {
                    url: Secret::url(text),
                }),
                Err(error) => Err(Invalid::new(error.problem, error.help)),
            }
        }
        Some((start, _)) if start.contains("//") => {
            address::check(text).and(Err(Invalid::new("not a URL", FORMS)))
        }
        Some(_) => Err(Invalid::new("unknown kind of broker", FORMS)),
        None if text == "embedded" => {
            Err(Invalid::new("the colon is missing", "write `embedded:`"))
        }
        None => Err(Invalid::new("not a URL", FORMS)),
    }
}

pub(super) fn admin(mut table: Table<'_>) -> Result<Admin, Reported> {
    let listen = table.or("listen", Some(Listen::Tcp(local(9470))), |listen| {
        listen.parse(|text| match text.strip_prefix("unix:") {
            Some(path) => socket(&listen, path).map(Listen::Unix).map(Some),
            None => Ok(address(text, 9470, ", `unix:PATH`")?.map(Listen::Tcp)),
        })
    });
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
    if let (Ok(Some(Listen::Tcp(listen))), Ok(None)) = (&listen, &token)
        && !listen.ip().is_loopback()
    {
        let problem = table.problem_at(&["listen"], "`admin.token` is missing");
        table.reader.report(
            problem
                .label("reachable from other machines")
                .help("set `token = { env = \"HAPAX_ADMIN_TOKEN\" }`, or listen on 127.0.0.1"),
        );
    }
    let max_connections = max_connections(&mut table);
    let state = state_places(&|name| table.reader.outside.env(name).ok());
    table.finish();
    Ok(Admin {
        listen: listen?,
        token: token?,
        max_connections: max_connections?,
        state,
    })
}

pub(super) fn health(mut table: Table<'_>) -> Result<Health, Reported> {
    let listen = table.or("listen", Some(local(9471)), |listen| {
        listen.parse(|text| address(text, 9471, ""))
    });
    let max_connections = max_connections(&mut table);
    table.finish();
    Ok(Health {
        listen: listen?,
        max_connections: max_connections?,
    })
}

fn max_connections(table: &mut Table<'_>) -> Result<usize, Reported> {
    table.or("max-connections", 64, |max| max.integer(1..=10_000))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An address, or none for `off`. `forms` names the other forms that the field has.
fn address(text: &str, port: u16, forms: &str) -> Result<Option<SocketAddr>, Invalid> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let help = format!(
            "write an IP address and a port, as in `{}` or `0.0.0.0:{port}`{forms}, or `off`",
            local(port)
        );
        Invalid::new("not an address to listen on", help)
    })
}

/// The most bytes that the path of a socket may have, on every system that has them.
const MAX_SOCKET_PATH_BYTES: usize = 103;

fn socket(value: &Value<'_>, path: &str) -> Result<PathBuf, Invalid> {
    const FORM: &str =
        "write `unix:PATH`, where PATH starts from the directory of this configuration";
    if !cfg!(unix) {
        return Err(Invalid::new(
            "this system has no such sockets",
            "listen on 127.0.0.1",
        ));
    }
    let resolved = value.reader.resolve_path(path);
    if path.is_empty() {
        return Err(Invalid::new("names no socket", FORM));
    }
    if resolved.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        let title = format!("the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes");
        return Err(Invalid::new(title, "choose a shorter one"));
    }
    Ok(resolved)
}

pub(super) fn log(mut table: Table<'_>) -> Result<Log, Reported> {
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

pub(super) fn host(mut table: Table<'_>) -> Result<Host, Reported> {
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
    let compile_timeout = table.or("compile-timeout", COMPILE_TIMEOUT, |timeout| {
        timeout.duration(TIMEOUTS)
    });
    let default = cache_place(&|name| table.reader.outside.env(name).ok());
    let cache = table.or("cache", default, |cache| {
        cache.parse(|text| match text {
            "" => Err(Invalid::new(
                "names no directory",
                "write a directory, or `off` to keep nothing",
            )),
            "off" => Ok(None),
            _ => Ok(Some(cache.reader.resolve_path(text))),
        })
    });
    let machine = table.reader.outside.host_name();
    table.finish();
    Ok(Host {
        name: name?.unwrap_or(machine),
        shutdown_timeout: shutdown_timeout?,
        compile_timeout: compile_timeout?,
        cache: cache?,
    })
}

/// Where services and users keep what can be made again: systemd says it, then the desktop's rules.
pub(super) fn cache_place(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let named = |name| env(name).filter(|place| Path::new(place).is_absolute());
    let own = named("CACHE_DIRECTORY").map(PathBuf::from);
    own.or_else(|| Some(Path::new(&named("XDG_CACHE_HOME")?).join("hapax")))
        .or_else(|| Some(Path::new(&named("HOME")?).join(".cache/hapax")))
}

/// Where services and users keep what outlives a restart: systemd says it, then the desktop's rules.
fn state_places(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = |name| env(name).filter(|place| Path::new(place).is_absolute());
    // systemd names all of a unit's directories here.
    let own = named("STATE_DIRECTORY").and_then(|all| all.split(':').next().map(PathBuf::from));
    let desktop = named("XDG_STATE_HOME").map(|place| Path::new(&place).join("hapax"));
    let home = named("HOME").map(|place| Path::new(&place).join(".local/state/hapax"));
    own.into_iter().chain(desktop).chain(home).collect()
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

/// The range of whatever the host waits for.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
