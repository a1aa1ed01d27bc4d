//! The SQL of the hand-written consumer, on both stores.

use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres, SqlitePool, Transaction};

use crate::cli::bench::place::Corner;
use crate::cli::demo::orders::Order;
use crate::cli::demo::{database, sqlite};

const CLAIM: &str = "INSERT INTO processed_messages (message_id, fingerprint) VALUES ($1, $2) \
                     ON CONFLICT (message_id) DO NOTHING";

const CREDIT: &str = "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)";

const KEEP: &str = "INSERT INTO outbox (routing_key, body) VALUES ($1, $2)";

const TAKE: &str = "SELECT id, body FROM outbox ORDER BY id LIMIT $1";

/// Several relays may run on a server; each takes rows that no other has.
const TAKE_UNLOCKED: &str =
    "SELECT id, body FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Rows are taken in the order of their ids, and deleted by list on a server, by range in a file that has
/// one writer.
const FORGET: &str = "DELETE FROM outbox WHERE id = ANY($1)";
const FORGET_UP_TO: &str = "DELETE FROM outbox WHERE id <= $1";

#[derive(Clone)]
pub enum Hand {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// A row of the outbox: its id, and the body of the event.
pub type Event = (i32, Vec<u8>);

/// One message in one transaction: known already, or ledger, row and event together.
macro_rules! handle {
    ($pool:expr, $order:expr, $fingerprint:expr, $target:expr) => {{
        let mut transaction = $pool.begin().await?;
        let claimed = sqlx::query(CLAIM)
            .bind(&$order.order_id)
            .bind($fingerprint)
            .execute(&mut *transaction)
            .await?;
        if claimed.rows_affected() == 1 {
            sqlx::query(CREDIT)
                .bind(&$order.order_id)
                .bind(&$order.user_id)
                .bind($order.points())
                .execute(&mut *transaction)
                .await?;
            if let Some(target) = $target {
                sqlx::query(KEEP)
                    .bind(target)
                    .bind(event($order))
                    .execute(&mut *transaction)
                    .await?;
            }
        }
        transaction.commit().await?;
    }};
}

impl Hand {
    pub async fn open(corner: &Corner, connections: u32) -> anyhow::Result<Self> {
        let Some(url) = &corner.surroundings.database else {
            return Ok(Self::Sqlite(sqlite::open_full(&corner.shop_file()).await?));
        };
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(10))
            // It costs a round trip each time, and careful engineers switch it off.
            .test_before_acquire(false)
            .connect_with(database::options(url, Some(&corner.name))?)
            .await?;
        Ok(Self::Postgres(pool))
    }

    /// One message. A duplicate leaves nothing.
    pub async fn handle(
        &self,
        order: &Order,
        fingerprint: &[u8],
        target: Option<&str>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Postgres(pool) => handle!(pool, order, fingerprint, target),
            Self::Sqlite(pool) => handle!(pool, order, fingerprint, target),
        }
        Ok(())
    }

    /// The oldest events. On a server they stay locked until they are forgotten.
    pub async fn take(&self, block: i64) -> anyhow::Result<Taken> {
        Ok(match self {
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                let events = sqlx::query_as(TAKE_UNLOCKED)
                    .bind(block)
                    .fetch_all(&mut *transaction)
                    .await?;
                Taken::Postgres(transaction, events)
            }
            Self::Sqlite(pool) => {
                let events = sqlx::query_as(TAKE).bind(block).fetch_all(pool).await?;
                Taken::Sqlite(pool.clone(), events)
            }
        })
    }
}

/// Events that are in the outbox, and with the relay.
pub enum Taken {
    Postgres(Transaction<'static, Postgres>, Vec<Event>),
    Sqlite(SqlitePool, Vec<Event>),
}

impl Taken {
    pub fn events(&self) -> &[Event] {
        match self {
            Self::Postgres(_, events) | Self::Sqlite(_, events) => events,
        }
    }

    /// The broker has confirmed them: they leave the outbox.
    pub async fn forget(self) -> anyhow::Result<()> {
        match self {
            Self::Postgres(mut transaction, events) => {
                let ids = events.iter().map(|(id, _)| *id).collect::<Vec<_>>();
                if !ids.is_empty() {
                    sqlx::query(FORGET)
                        .bind(ids)
                        .execute(&mut *transaction)
                        .await?;
                }
                transaction.commit().await?;
            }
            Self::Sqlite(pool, events) => {
                if let Some((last, _)) = events.last() {
                    sqlx::query(FORGET_UP_TO).bind(last).execute(&pool).await?;
                }
            }
        }
        Ok(())
    }
}

/// What the handler of `plugins/points` publishes.
fn event(order: &Order) -> Vec<u8> {
    let event = serde_json::json!({ "order_id": order.order_id, "points": order.points() });
    event.to_string().into_bytes()
}
