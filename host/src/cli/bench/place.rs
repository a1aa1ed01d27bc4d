//! Where one measurement happens: a directory, a schema and two queues with a random name, made for it and
//! removed after it.

use std::ops::Deref;
use std::path::PathBuf;

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::scenario::{Runner, Scenario};
use super::{embedded, queues};
use crate::cli::demo::database::connect;
use crate::cli::demo::place::Surroundings;
use crate::cli::demo::sqlite;

const STORE_FILE: &str = "hapax.db";
const SHOP_FILE: &str = "shop.db";

/// The table of the handler, for Hapax and for the hand-written consumer alike.
const BUSINESS: &str = "CREATE TABLE t_points (
    order_id VARCHAR(64) NOT NULL PRIMARY KEY,
    user_id  VARCHAR(64) NOT NULL,
    points   BIGINT      NOT NULL
)";

/// What the hand-written consumer needs besides.
const BY_HAND: [&str; 2] = [
    "CREATE TABLE processed_messages (
        message_id  VARCHAR(64) NOT NULL PRIMARY KEY,
        fingerprint BYTEA       NOT NULL
    )",
    "CREATE TABLE outbox (
        id          SERIAL PRIMARY KEY,
        routing_key TEXT  NOT NULL,
        body        BYTEA NOT NULL
    )",
];

/// Names of what a measurement has made. Its child process knows as much.
pub struct Corner {
    pub dir: PathBuf,
    /// `hapax_bench_` and random letters: the schema, and the beginning of the queues' names.
    pub name: String,
    pub surroundings: Surroundings,
}

impl Corner {
    /// The queue that is consumed.
    pub fn incoming(&self) -> String {
        format!("{}.in", self.name)
    }

    /// The queue that the events end up in.
    pub fn outgoing(&self) -> String {
        format!("{}.out", self.name)
    }

    /// Without servers: the queues, and all that Hapax has.
    pub fn store_file(&self) -> PathBuf {
        self.dir.join(STORE_FILE)
    }

    /// Without a server: the tables of the hand-written consumer.
    pub fn shop_file(&self) -> PathBuf {
        self.dir.join(SHOP_FILE)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// One measurement's own corner.
pub struct Place(Corner);

impl Deref for Place {
    type Target = Corner;

    fn deref(&self) -> &Corner {
        &self.0
    }
}

impl Place {
    /// A directory, and names for the rest.
    pub fn new(surroundings: &Surroundings) -> anyhow::Result<Self> {
        let letters = std::iter::repeat_with(fastrand::lowercase)
            .take(8)
            .collect::<String>();
        let name = format!("hapax_bench_{letters}");
        let dir = std::env::temp_dir().join(&name);
        // Not `create_dir_all`: a directory that is there already is not ours.
        std::fs::create_dir(&dir).context("cannot make a directory for the measurement")?;
        Ok(Self(Corner {
            dir,
            name,
            surroundings: surroundings.clone(),
        }))
    }

    /// Makes the tables and the queues.
    pub async fn make(&self) -> anyhow::Result<()> {
        self.make_tables().await?;
        match &self.surroundings.amqp {
            Some(url) => queues::make(url, self).await,
            None => embedded::make(self).await,
        }
    }

    async fn make_tables(&self) -> anyhow::Result<()> {
        let Some(url) = &self.surroundings.database else {
            for file in [self.store_file(), self.shop_file()] {
                let pool = sqlite::open(&file).await?;
                pool.execute(BUSINESS).await?;
                for table in BY_HAND {
                    let table = table.replace("SERIAL", "INTEGER");
                    pool.execute(AssertSqlSafe(table)).await?;
                }
                pool.close().await;
            }
            return Ok(());
        };
        let mut connection = connect(url, Some(&self.name)).await?;
        let create = format!("CREATE SCHEMA \"{}\"", self.name);
        connection
            .execute(AssertSqlSafe(create))
            .await
            .context("cannot make a schema for the measurement")?;
        for table in [BUSINESS].iter().chain(&BY_HAND) {
            connection.execute(*table).await?;
        }
        Ok(connection.close().await?)
    }

    /// Rows in the business table, and distinct orders among them.
    pub async fn rows(&self, runner: Runner) -> anyhow::Result<(u64, u64)> {
        const COUNT: &str = "SELECT count(*), count(DISTINCT order_id) FROM t_points";
        let (rows, distinct): (i64, i64) = match &self.surroundings.database {
            Some(url) => {
                let mut connection = connect(url, Some(&self.name)).await?;
                let counts = sqlx::query_as(COUNT).fetch_one(&mut connection).await?;
                connection.close().await?;
                counts
            }
            None => {
                let file = match runner {
                    Runner::Rival(_) => self.shop_file(),
                    Runner::Hapax(_) => self.store_file(),
                };
                let pool = sqlite::open(&file).await?;
                let counts = sqlx::query_as(COUNT).fetch_one(&pool).await?;
                pool.close().await;
                counts
            }
        };
        Ok((rows.unsigned_abs(), distinct.unsigned_abs()))
    }

    /// How many messages are left in each queue. Nobody may be consuming.
    pub async fn depths(&self) -> anyhow::Result<(u64, u64)> {
        match &self.surroundings.amqp {
            Some(url) => queues::depths(url, self).await,
            None => embedded::depths(self).await,
        }
    }

    /// Writes the server's dirty pages now, so that no measurement pays for the one before. Only a
    /// superuser may ask for it; for others the server does it when it likes.
    pub async fn settle_down(&self) -> anyhow::Result<()> {
        if let Some(url) = &self.surroundings.database {
            let mut connection = connect(url, None).await?;
            let _ = connection.execute("CHECKPOINT").await;
            connection.close().await?;
        }
        Ok(())
    }

    /// Removes what is on servers. The directory goes when the place is dropped.
    pub async fn remove(&self) -> anyhow::Result<()> {
        if let Some(url) = &self.surroundings.amqp {
            queues::remove(url, self).await?;
        }
        if let Some(url) = &self.surroundings.database {
            let mut connection = connect(url, None).await?;
            let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.name);
            connection.execute(AssertSqlSafe(drop)).await?;
            connection.close().await?;
        }
        Ok(())
    }

    /// Whether a scenario can be measured here.
    pub fn can(surroundings: &Surroundings, scenario: Scenario) -> bool {
        // A paced publisher needs a broker that takes messages while they are consumed.
        surroundings.amqp.is_some() || scenario.rate().is_none()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}
