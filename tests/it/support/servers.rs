//! Private servers: started when the first test asks, on free ports, with data that is thrown
//! away. Servers that already run on this machine are neither used nor touched.
//!
//! Tests share one PostgreSQL and one RabbitMQ of each release and take a database and a virtual host of their
//! own. A test that stops or kills a server starts its own.

mod launch;
mod postgres;
mod rabbit;

pub use postgres::Postgres;
pub use rabbit::{Rabbit, Release};

use tokio::sync::OnceCell;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
static RABBIT: OnceCell<Rabbit> = OnceCell::const_new();
static RABBIT_4: OnceCell<Rabbit> = OnceCell::const_new();

/// The PostgreSQL that tests share.
pub async fn postgres() -> anyhow::Result<&'static Postgres> {
    POSTGRES
        .get_or_try_init(|| Postgres::start("postgres-shared"))
        .await
}

/// The RabbitMQ that tests share.
pub async fn rabbit() -> anyhow::Result<&'static Rabbit> {
    rabbit_of(Release::Installed).await
}

/// The RabbitMQ of this release that tests share.
pub async fn rabbit_of(release: Release) -> anyhow::Result<&'static Rabbit> {
    let (cell, name) = match release {
        Release::Installed => (&RABBIT, "rabbit-shared"),
        Release::Four => (&RABBIT_4, "rabbit-4-shared"),
    };
    cell.get_or_try_init(|| Rabbit::start_release(release, name))
        .await
}

/// The ends of the shared servers' logs.
pub fn log_tails() -> String {
    let postgres = POSTGRES.get().map(Postgres::log_tail);
    let rabbits = [&RABBIT, &RABBIT_4].map(|rabbit| rabbit.get().map(Rabbit::log_tail));
    [postgres].into_iter().chain(rabbits).flatten().collect()
}

/// Stops the shared servers, if they were started.
pub fn stop_shared() {
    if let Some(postgres) = POSTGRES.get() {
        postgres.discard();
    }
    for rabbit in [&RABBIT, &RABBIT_4] {
        if let Some(rabbit) = rabbit.get() {
            rabbit.discard();
        }
    }
}
