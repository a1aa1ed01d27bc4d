//! The business table as a consumer writes it: one row for one order, in a transaction of its own.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, SqlitePool};

use crate::cli::demo::database;
use crate::cli::demo::orders::Order;
use crate::cli::demo::place::{self, Surroundings};
use crate::cli::demo::sqlite;

const INSERT: &str = "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)";

/// The usual size of a pool.
const CONNECTIONS: u32 = 10;

pub enum Shop {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Shop {
    /// The table is there already.
    pub async fn open(
        surroundings: &Surroundings,
        dir: &Path,
        schema: &str,
    ) -> anyhow::Result<Self> {
        let Some(url) = &surroundings.database else {
            return Ok(Self::Sqlite(
                sqlite::open(&dir.join(place::SHOP_FILE)).await?,
            ));
        };
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(database::options(url, Some(schema))?)
            .await?;
        Ok(Self::Postgres(pool))
    }

    pub async fn credit(&self, order: &Order) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(pool) => {
                let mut transaction = pool.begin().await?;
                sqlx::query(INSERT)
                    .bind(&order.order_id)
                    .bind(&order.user_id)
                    .bind(order.points())
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
            }
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                sqlx::query(INSERT)
                    .bind(&order.order_id)
                    .bind(&order.user_id)
                    .bind(order.points())
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
            }
        }
        Ok(())
    }
}
