//! The business tables: made before the consumers start, and read after they have stopped.
//!
//! All four get the same table, and nothing in it refuses a second row for an order: what a consumer does
//! twice is there twice. On a server each has a schema of its own, made for the run and removed at its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::Trouble;
use super::place::{Contestant, Place};
use super::sqlite;
use crate::store::postgres::PostgresStore;
use crate::store::{SessionOptions, Store};

/// The table of `plugins/points`, without its primary key.
const TABLE: &str = "CREATE TABLE t_points (
    order_id VARCHAR(64) NOT NULL,
    user_id  VARCHAR(64) NOT NULL,
    points   BIGINT      NOT NULL
)";

const EFFECTS: &str = "SELECT order_id FROM t_points";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to connect, with a schema as the place of unqualified names.
pub fn options(url: &str, schema: Option<&str>) -> anyhow::Result<PgConnectOptions> {
    const FORM: &str = "--database takes a URL like postgres://USER:PASSWORD@HOST/DATABASE";
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    if !matches!(scheme, "postgres" | "postgresql") {
        bail!(Trouble::Usage(FORM.to_owned()));
    }
    let options = url
        .parse::<PgConnectOptions>()
        .map_err(|error| Trouble::Usage(format!("{FORM}: {error}")))?
        .application_name("hapax demo")
        .disable_statement_logging();
    Ok(match schema {
        Some(schema) => options.options([("search_path", schema)]),
        None => options,
    })
}

/// Connects, with a schema as the place of unqualified names.
pub async fn connect(url: &str, schema: Option<&str>) -> anyhow::Result<PgConnection> {
    let options = options(url, schema)?;
    let host = options.get_host().to_owned();
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options));
    match connection.await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => bail!(Trouble::Unavailable(format!(
            "the database on {host} cannot be used: {error}"
        ))),
        Err(_) => bail!(Trouble::Unavailable(format!(
            "the database on {host} does not answer"
        ))),
    }
}

/// Makes the table of a consumer.
pub async fn create(place: &Place, contestant: Contestant) -> anyhow::Result<()> {
    let Some(url) = &place.surroundings.database else {
        let pool = sqlite::open(&place.shop_file(contestant)).await?;
        pool.execute(TABLE).await?;
        pool.close().await;
        return Ok(());
    };
    let schema = place.name_of(contestant);
    let mut connection = connect(url, Some(&schema)).await?;
    let create = format!("CREATE SCHEMA \"{schema}\"");
    connection
        .execute(AssertSqlSafe(create))
        .await
        .context("cannot make a schema for the demo")?;
    connection.execute(TABLE).await?;
    connection.close().await?;
    Ok(())
}

/// The order of every row in the table of a consumer that has stopped.
pub async fn effects(place: &Place, contestant: Contestant) -> anyhow::Result<Vec<String>> {
    let Some(url) = &place.surroundings.database else {
        let pool = sqlite::open(&place.shop_file(contestant)).await?;
        let rows = sqlx::query_scalar(EFFECTS).fetch_all(&pool).await?;
        pool.close().await;
        return Ok(rows);
    };
    let mut connection = connect(url, Some(&place.name_of(contestant))).await?;
    let rows = sqlx::query_scalar(EFFECTS)
        .fetch_all(&mut connection)
        .await?;
    connection.close().await?;
    Ok(rows)
}

/// The store of Hapax on the server.
pub fn hapax_store(place: &Place, url: &str) -> anyhow::Result<Arc<dyn Store>> {
    let options = SessionOptions {
        statement_timeout: CONNECT_TIMEOUT,
        lock_timeout: CONNECT_TIMEOUT,
        idle_timeout: CONNECT_TIMEOUT,
    };
    let schema = place.name_of(Contestant::Hapax);
    Ok(Arc::new(PostgresStore::new(url, &schema, options)?))
}

/// Removes what the run has made on the server. Files go with their directory.
pub async fn remove(place: &Place) -> anyhow::Result<()> {
    let Some(url) = &place.surroundings.database else {
        return Ok(());
    };
    let mut connection = connect(url, None).await?;
    for contestant in Contestant::ALL {
        let drop = format!(
            "DROP SCHEMA IF EXISTS \"{}\" CASCADE",
            place.name_of(contestant)
        );
        connection.execute(AssertSqlSafe(drop)).await?;
    }
    connection.close().await?;
    Ok(())
}
