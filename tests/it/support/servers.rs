//! Private servers: started when the first test asks, on free ports, with data that is thrown
//! away. Servers that already run on this machine are neither used nor touched.
//!
//! Tests share one PostgreSQL and one RabbitMQ and take a database and a virtual host of their
//! own. A test that stops or kills a server starts its own.

mod launch;
mod postgres;
mod rabbit;

pub use postgres::Postgres;
pub use rabbit::Rabbit;

use tokio::sync::OnceCell;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
static RABBIT: OnceCell<Rabbit> = OnceCell::const_new();

/// The PostgreSQL that tests share.
pub async fn postgres() -> anyhow::Result<&'static Postgres> {
    POSTGRES
        .get_or_try_init(|| Postgres::start("postgres-shared"))
        .await
}

/// The RabbitMQ that tests share.
pub async fn rabbit() -> anyhow::Result<&'static Rabbit> {
    RABBIT
        .get_or_try_init(|| Rabbit::start("rabbit-shared"))
        .await
}

/// The ends of the shared servers' logs.
pub fn log_tails() -> String {
    let postgres = POSTGRES.get().map(Postgres::log_tail);
    let rabbit = RABBIT.get().map(Rabbit::log_tail);
    [postgres, rabbit].into_iter().flatten().collect()
}

/// Stops the shared servers, if they were started.
pub fn stop_shared() {
    if let Some(postgres) = POSTGRES.get() {
        postgres.discard();
    }
    if let Some(rabbit) = RABBIT.get() {
        rabbit.discard();
    }
}
