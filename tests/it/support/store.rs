//! The test's side of the store: a fresh database for each test, and what is in its tables.
//!
//! A SQLite store is read with a read-only connection of the test's own. Do that while no host
//! runs, or seldom: a reader keeps the log from being written back.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, SqliteConnection};

use super::place::Place;
use super::servers::{self, Postgres};
use super::wait;

pub struct Store {
    /// As the host's configuration names it.
    pub url: String,
    pub kind: Kind,
}

pub enum Kind {
    Postgres { pool: PgPool, database: String },
    Sqlite(PathBuf),
}

/// The fates of all keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    pub committed: i64,
    pub waiting: i64,
    pub parked: i64,
    pub discarded: i64,
    pub started: i64,
}

impl Store {
    /// A new database on the shared server.
    pub async fn postgres() -> anyhow::Result<Store> {
        Store::postgres_on(servers::postgres().await?).await
    }

    /// A new database on a server of the test's own.
    pub async fn postgres_on(server: &Postgres) -> anyhow::Result<Store> {
        let database = server.create_database().await?;
        let url = server.url(&database);
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options);
        Ok(Store {
            url,
            kind: Kind::Postgres { pool, database },
        })
    }

    /// A file in the test's directory.
    pub fn sqlite(place: &Place) -> Store {
        let file = place.dir.join("hapax.db");
        Store {
            url: format!("sqlite:{}", file.display()),
            kind: Kind::Sqlite(file),
        }
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres { .. })
    }

    /// The same database through another address, such as a proxy's.
    pub fn url_through(&self, address: std::net::SocketAddr) -> String {
        match &self.kind {
            Kind::Postgres { database, .. } => format!("postgres://hapax@{address}/{database}"),
            Kind::Sqlite(_) => unreachable!("a file has no address"),
        }
    }

    /// Runs statements, such as the tables of the handlers. For SQLite: while no host runs.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &self.kind {
            Kind::Postgres { pool, .. } => {
                pool.execute(sql).await?;
            }
            Kind::Sqlite(file) => {
                let options = SqliteConnectOptions::new().filename(file);
                let options = options.create_if_missing(true);
                let mut connection = SqliteConnection::connect_with(&options).await?;
                connection.execute(sql).await?;
                connection.close().await?;
            }
        }
        Ok(())
    }

    /// A transaction of somebody else, open after this statement until it or its connection ends. On a server.
    pub async fn hold(&self, sql: &str) -> anyhow::Result<PgConnection> {
        let mut other = PgConnection::connect(&self.url).await?;
        let held = format!("BEGIN; {sql}");
        sqlx::raw_sql(AssertSqlSafe(held))
            .execute(&mut other)
            .await?;
        Ok(other)
    }

    /// The rows of a query with one column of texts.
    pub async fn texts(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match &self.kind {
            Kind::Postgres { pool, .. } => sqlx::query_scalar(sql).fetch_all(pool).await?,
            Kind::Sqlite(file) => {
                let mut connection = reader(file).await?;
                let rows = sqlx::query_scalar(sql).fetch_all(&mut connection).await?;
                connection.close().await?;
                rows
            }
        })
    }

    /// The rows of a query with one column of bytes.
    pub async fn bytes(&self, sql: &str) -> anyhow::Result<Vec<Vec<u8>>> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match &self.kind {
            Kind::Postgres { pool, .. } => sqlx::query_scalar(sql).fetch_all(pool).await?,
            Kind::Sqlite(file) => {
                let mut connection = reader(file).await?;
                let rows = sqlx::query_scalar(sql).fetch_all(&mut connection).await?;
                connection.close().await?;
                rows
            }
        })
    }

    /// The one number that a query returns, such as a count.
    pub async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match &self.kind {
            Kind::Postgres { pool, .. } => sqlx::query_scalar(sql).fetch_one(pool).await?,
            Kind::Sqlite(file) => {
                let mut connection = reader(file).await?;
                let number = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
                connection.close().await?;
                number
            }
        })
    }

    pub async fn count(&self, table: &str) -> anyhow::Result<i64> {
        self.number(&format!("SELECT count(*) FROM {table}")).await
    }

    /// Waits until the outbox has nothing left to send.
    pub async fn until_outbox_empty(&self) -> anyhow::Result<()> {
        wait::until_equal("the rows of the outbox", 0, async || {
            self.count("hapax_outbox").await
        })
        .await
    }

    /// The fates of the keys of all consumers; tests have one consumer or ask for sums.
    pub async fn fates(&self) -> anyhow::Result<Fates> {
        let sql = "SELECT fate || ':' || count(*) FROM hapax_ledger GROUP BY fate";
        let mut fates = Fates::default();
        for row in self.texts(sql).await? {
            let (fate, count) = row.split_once(':').expect("the query puts a colon there");
            let count = count.parse()?;
            match fate {
                "1" => fates.committed = count,
                "2" => fates.waiting = count,
                "3" => fates.parked = count,
                "4" => fates.discarded = count,
                "5" => fates.started = count,
                unknown => anyhow::bail!("the ledger has {count} rows of fate {unknown}"),
            }
        }
        Ok(fates)
    }

    /// `key status code` of every row in `hapax_waiting` that belongs to a key, sorted.
    pub async fn waiting_keys(&self) -> anyhow::Result<Vec<String>> {
        let key = match self.kind {
            Kind::Postgres { .. } => "convert_from(key, 'UTF8')",
            Kind::Sqlite(_) => "CAST(key AS TEXT)",
        };
        let sql = format!(
            "SELECT {key} || ' ' || status || ' ' || code FROM hapax_waiting WHERE key IS NOT NULL"
        );
        let mut rows = self.texts(&sql).await?;
        rows.sort();
        Ok(rows)
    }

    /// `status code` of every row in `hapax_waiting`, sorted.
    pub async fn waiting(&self) -> anyhow::Result<Vec<String>> {
        let sql = "SELECT status || ' ' || code FROM hapax_waiting ORDER BY 1";
        self.texts(sql).await
    }
}

async fn reader(file: &PathBuf) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    Ok(SqliteConnection::connect_with(&options).await?)
}
