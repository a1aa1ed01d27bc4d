//! The Postgres dialect: how to connect, and the settings that every session needs.
//!
//! A session is one raw connection. Its settings are forced when it opens, so that neither the role nor the
//! database can weaken the promise. It deliberately does not pool or reconnect: a session whose connection
//! is lost stays lost, and the caller decides when to open another one.

mod bounded;
mod consumers;
mod decode;
mod encode;
mod errors;
mod guest;
mod ledger;
mod numeric;
mod outbox;
mod rows;
mod session;
mod state;
mod stuck;
mod upkeep;
mod waiting;
mod warnings;

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use self::errors::Refusal;
use self::session::{CACHED_STATEMENTS, PostgresSession};
use self::stuck::{GivenUp, Remains};
use crate::failpoint::{self, Point};

use super::{Dialect, Session, SessionOptions, Store, StoreError, StuckSession, Traits, migrate};

/// A Postgres database, and the schema of the tables in it.
pub struct PostgresStore {
    connect: PgConnectOptions,
    schema: Arc<str>,
    options: SessionOptions,
    given_up: GivenUp,
}

/// The number of the advisory lock that hosts migrate under. A random number, the same in every version.
const MIGRATE_LOCK: i64 = 0x6861_7061_785f_6d31;

/// The first server with `pg_current_xact_id`, and with it the proof that `finish` needs.
const OLDEST_SERVER: u32 = 130_000;

/// The first server that notices a client's death while a statement runs.
const SERVER_WITH_CONNECTION_CHECK: u32 = 140_000;

impl PostgresStore {
    /// Reads the URL; connects only when a session is opened. `schema` was validated by the
    /// configuration: it is a plain lower case name.
    pub fn new(url: &str, schema: &str, options: SessionOptions) -> Result<Self, StoreError> {
        let connect = options_of(url)
            .map_err(|error| StoreError::Unusable(format!("the URL of the store: {error}")))?
            .statement_cache_capacity(CACHED_STATEMENTS)
            .disable_statement_logging();
        Ok(Self {
            connect,
            schema: schema.into(),
            options,
            given_up: GivenUp::default(),
        })
    }

    /// The first number of this schema's advisory locks, so that two schemas in one database do not
    /// take each other's hosts for their own.
    fn lock_class(&self) -> i32 {
        let digest = Sha256::digest(format!("hapax hosts of {}", self.schema));
        i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    }

    async fn connect(&self, name: &str) -> Result<PgConnection, StoreError> {
        let options = self.connect.clone().application_name(name);
        let mut connection = PgConnection::connect_with(&options)
            .await
            .map_err(unreachable)?;
        let version = connection.server_version_num().unwrap_or(0);
        if version < OLDEST_SERVER {
            return Err(StoreError::Unusable(format!(
                "the server is Postgres {}, and hapax needs 13 or newer",
                version / 10_000
            )));
        }
        let encoding = connection.fetch_one("SHOW server_encoding").await;
        let encoding: String = encoding
            .and_then(|row| row.try_get(0))
            .map_err(unreachable)?;
        if encoding != "UTF8" {
            let database = self.connect.get_database().unwrap_or("of this role");
            return Err(StoreError::Unusable(format!(
                "the database {database} has the encoding {encoding}, which cannot hold what messages and handlers \
                 write; hapax needs UTF8: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8', and move the \
                 tables there with pg_dump"
            )));
        }
        connection
            .execute(AssertSqlSafe(self.settings()))
            .await
            .map_err(unreachable)?;
        if version >= SERVER_WITH_CONNECTION_CHECK {
            // Some platforms have no way to look at the socket and refuse the setting; `warnings` tells.
            let _ = connection
                .execute("SET client_connection_check_interval = '1s'")
                .await;
        }
        Ok(connection)
    }

    /// One round trip that makes a fresh session ours.
    fn settings(&self) -> String {
        let statement_ms = self
            .options
            .statement_timeout
            .as_millis()
            .min(i32::MAX as u128);
        let lock_ms = self.options.lock_timeout.as_millis().min(i32::MAX as u128);
        // A host that hangs with its transaction open must not hold its claims for hours.
        let idle_ms = self.options.idle_timeout.as_millis();
        let idle_ms = (statement_ms + idle_ms).min(i32::MAX as u128);
        format!(
            "SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
             WHERE pg_catalog.current_setting('synchronous_commit') <> 'remote_apply';\n\
             SET default_transaction_isolation = 'read committed';\n\
             SET default_transaction_deferrable = off;\n\
             SET statement_timeout = {statement_ms};\n\
             SET lock_timeout = {lock_ms};\n\
             SET idle_in_transaction_session_timeout = {idle_ms};\n\
             SET tcp_keepalives_idle = 10;\n\
             SET tcp_keepalives_interval = 5;\n\
             SET tcp_keepalives_count = 3;\n\
             SET standard_conforming_strings = on;\n\
             SET client_encoding = 'UTF8';\n\
             SET TimeZone = 'UTC';\n\
             SET jit = off;\n\
             SET search_path = \"{}\", public;",
            self.schema
        )
    }

    /// The number of the schema in the database; 0 without tables.
    async fn schema_number(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let there: bool =
            sqlx::query("SELECT pg_catalog.to_regclass(pg_catalog.format('%I.hapax_meta', $1::text)) IS NOT NULL")
                .bind(&*self.schema)
                .fetch_one(&mut *connection)
                .await?
                .try_get(0)?;
        if !there {
            return Ok(0);
        }
        let text = format!(
            "SELECT value::bigint FROM \"{}\".hapax_meta WHERE name = $1",
            self.schema
        );
        let row = sqlx::query(AssertSqlSafe(text))
            .bind(migrate::SCHEMA)
            .fetch_optional(connection)
            .await?;
        row.map_or(Ok(0), |row| row.try_get(0))
    }

    /// Applies the pending migrations in one transaction.
    async fn apply(&self, connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
        // A migration may take longer than a statement of the pipeline, and so may the wait for another
        // host's.
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
             SELECT pg_catalog.pg_advisory_xact_lock({MIGRATE_LOCK});"
        );
        connection
            .execute(AssertSqlSafe(begin))
            .await
            .map_err(own)?;
        let schema = self.schema_number(connection).await.map_err(own)?;
        let pending = migrate::pending(schema)?;
        if pending.is_empty() {
            connection.execute("ROLLBACK").await.map_err(own)?;
            return Ok(pending);
        }
        failpoint::pass(Point::BeforeMigration);
        let script =
            migrate::enter_schema(&self.schema) + &migrate::script(Dialect::Postgres, schema);
        connection
            .execute(AssertSqlSafe(script))
            .await
            .map_err(own)?;
        failpoint::pass(Point::MidMigration);
        connection.execute("COMMIT").await.map_err(own)?;
        failpoint::pass(Point::AfterMigration);
        Ok(pending)
    }
}

/// What a URL of Postgres says. An IPv6 address stands in brackets there, and nowhere else.
fn options_of(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?;
    let host = options.get_host();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    Ok(match address.map(str::to_owned) {
        Some(address) => options.host(&address),
        None => options,
    })
}

/// What is to be said of how a URL protects the line to its server, for the operator. Nothing where the line does not
/// leave the machine, or where it is encrypted in any case.
pub fn line_warning(url: &str) -> Option<String> {
    let options = options_of(url).ok()?;
    let mode = match options.get_ssl_mode() {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => return None,
    };
    let host = options.get_host();
    let address = host.parse::<IpAddr>();
    let is_here = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback());
    (!is_here).then(|| {
        format!(
            "store: {host} is another machine, and sslmode is {mode}: messages can cross the network in plain text, \
             and any server that answers is taken for the database; write sslmode=verify-full&sslrootcert=FILE into the \
             URL, which alone makes sure of both"
        )
    })
}

/// Whatever keeps a session from being opened is the world's: passwords rotate and servers fail over
/// while hosts run.
fn unreachable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot open a session of Postgres: {error}"))
}

fn own(error: sqlx::Error) -> StoreError {
    Refusal::of(error).own()
}

#[async_trait]
impl Store for PostgresStore {
    fn traits(&self) -> Traits {
        Traits {
            dialect: Dialect::Postgres,
            error_kills_transaction: true,
            single_writer: false,
            max_savepoints: 64,
            max_parameters: 65_535,
        }
    }

    async fn session(&self, name: &str) -> Result<Box<dyn Session>, StoreError> {
        let mut connection = self.connect(name).await?;
        let (backend, stuck_before) = self.take_over(&mut connection, name).await?;
        let remains = Remains {
            backend: Some(backend),
            given_up: self.given_up.clone(),
        };
        let mut session = PostgresSession::new(
            connection,
            Arc::clone(&self.schema),
            self.lock_class(),
            self.options,
            remains,
        );
        session.stuck_before = stuck_before;
        Ok(Box::new(session))
    }

    fn stuck_sessions(&self) -> Vec<StuckSession> {
        self.given_up.left()
    }

    fn note_stuck(&self, before: &[StuckSession], found: Vec<StuckSession>) {
        self.given_up.note(before, found);
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect("hapax migrate").await?;
        let schema = self.schema_number(&mut connection).await.map_err(own)?;
        migrate::pending(schema)
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect("hapax migrate").await?;
        self.apply(&mut connection).await
    }

    async fn warnings(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect("hapax check").await?;
        let rows = sqlx::query(
            "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN \
             ('fsync', 'full_page_writes', 'synchronous_commit', 'client_connection_check_interval')",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(own)?;
        let mut warnings = Vec::new();
        let mut looks_at_clients = false;
        for row in rows {
            let name: String = row.try_get(0).map_err(own)?;
            let setting: String = row.try_get(1).map_err(own)?;
            match (name.as_str(), setting.as_str()) {
                ("fsync", "off") => warnings.push(
                    "fsync is off: a crash of the server can lose commits that were acknowledged"
                        .to_owned(),
                ),
                ("full_page_writes", "off") => warnings.push(
                    "full_page_writes is off: a crash of the server can corrupt the tables"
                        .to_owned(),
                ),
                ("synchronous_commit", setting) if setting != "on" && setting != "remote_apply" => {
                    warnings.push(format!(
                        "synchronous_commit stays {setting} although the session sets it to on: \
                         a crash of the server can lose commits that were acknowledged"
                    ))
                }
                ("client_connection_check_interval", setting) => looks_at_clients = setting != "0",
                _ => {}
            }
        }
        if !looks_at_clients {
            warnings.push(
                "the server does not notice the death of a client while a statement runs (Postgres 14 does): \
                 claims of a killed host can stay locked until the statement ends"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_brackets_is_an_address() {
        for (url, host) in [
            ("postgres://u@[::1]:5433/db", "::1"),
            ("postgres://u@[2001:db8::5]/db", "2001:db8::5"),
            ("postgres://u@127.0.0.1/db", "127.0.0.1"),
            ("postgres://u@db.example/db", "db.example"),
            ("postgres://u@h/db?host=/run/postgresql", "/run/postgresql"),
        ] {
            let options = options_of(url).unwrap();
            let socket = options.get_socket().map(|path| path.to_str().unwrap());
            assert_eq!(socket.unwrap_or(options.get_host()), host, "{url}");
        }
    }

    /// Only the server that listens there is asked.
    #[tokio::test]
    async fn an_ipv6_address_reaches_what_it_names() {
        let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
            // A machine without IPv6.
            return;
        };
        let url = format!(
            "postgres://u@[::1]:{}/db?sslmode=disable",
            listener.local_addr().unwrap().port()
        );
        let options = crate::store::SessionOptions {
            statement_timeout: std::time::Duration::from_secs(1),
            lock_timeout: std::time::Duration::from_secs(1),
            idle_timeout: std::time::Duration::from_secs(1),
        };
        let store = PostgresStore::new(&url, "public", options).unwrap();
        let (asked, _) = tokio::join!(
            async { listener.accept().await.map(drop).is_ok() },
            store.session("test")
        );
        assert!(asked);
    }

    #[test]
    fn a_line_that_leaves_the_machine_unprotected_is_warned_of() {
        let weak = [
            "postgres://u:secret@db.example/shop",
            "postgres://u:secret@10.0.0.7/shop?sslmode=prefer",
            "postgres://u:secret@[2001:db8::5]/shop?sslmode=disable",
        ];
        for url in weak {
            let warning = line_warning(url).expect(url);
            assert!(warning.contains("sslmode=verify-full"), "{warning}");
            assert!(!warning.contains("secret"), "{warning}");
        }
        for url in [
            "postgres://u@localhost/shop",
            "postgres://u@127.0.0.1/shop?sslmode=disable",
            "postgres://u@[::1]/shop",
            "postgres://u@/shop?host=/run/postgresql",
            "postgres://u@db.example/shop?sslmode=require",
            "postgres://u@db.example/shop?sslmode=verify-full",
        ] {
            assert_eq!(line_warning(url), None, "{url}");
        }
    }
}
