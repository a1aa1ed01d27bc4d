//! The embedded broker from outside: files that no other process has open at the time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Event, event, order_message};
use crate::cli::demo::orders::Orders;
use crate::cli::demo::place::{Contestant, EVENTS, ORDERS, Place};
use crate::cli::demo::sqlite;
use crate::store::sqlite::SqliteStore;
use crate::store::{Queues, Session, SessionOptions, Status, Store, WaitingFilter};

/// Messages in one transaction.
const CHUNK: usize = 1_000;

/// Opens a file with queues. One process at a time may.
pub fn open_store(file: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let timeout = Duration::from_secs(10);
    let options = SessionOptions {
        statement_timeout: timeout,
        lock_timeout: timeout,
        idle_timeout: timeout,
    };
    Ok(Arc::new(SqliteStore::open(file, options)?))
}

/// Fills one file, and gives a copy of it to every consumer.
pub async fn publish(place: &Place, orders: &Orders) -> anyhow::Result<()> {
    let file = place.dir.join("template.db");
    fill(&file, orders).await?;
    // What is in the log goes to the file, so that the file alone is everything.
    let pool = sqlite::open(&file).await?;
    let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(&pool)
        .await?;
    pool.close().await;
    ensure!(busy == 0, "the deliveries are not on disk");
    for contestant in Contestant::ALL {
        std::fs::copy(&file, place.broker_file(contestant))?;
    }
    std::fs::remove_file(&file)?;
    Ok(())
}

async fn fill(file: &Path, orders: &Orders) -> anyhow::Result<()> {
    let store = open_store(file)?;
    store.migrate().await?;
    let mut session = store.session("hapax demo").await?;
    let queues = queues(session.as_mut())?;
    queues.declare(ORDERS).await?;
    queues.declare(EVENTS).await?;
    for chunk in orders.deliveries.chunks(CHUNK) {
        let messages = chunk
            .iter()
            .map(|order| (ORDERS.to_owned(), order_message(ORDERS, order)));
        let taken = queues.publish(&messages.collect::<Vec<_>>()).await?;
        ensure!(
            taken.iter().all(|taken| *taken),
            "the embedded broker did not take the orders"
        );
    }
    Ok(())
}

pub async fn left(place: &Place, contestant: Contestant) -> anyhow::Result<u64> {
    let store = open_store(&place.broker_file(contestant))?;
    let mut session = store.session("hapax demo").await?;
    let mut left = queues(session.as_mut())?
        .depth(ORDERS)
        .await?
        .context("the queue is gone")?;
    if contestant == Contestant::Hapax {
        left += unfinished(session.as_mut()).await?;
    }
    Ok(left)
}

/// Events in the outbox, and messages that wait for another attempt.
pub async fn unfinished(session: &mut dyn Session) -> anyhow::Result<u64> {
    let outbox = session.outbox_depth().await?.rows;
    let filter = WaitingFilter {
        status: Some(Status::Retry),
        limit: 1_000,
        ..WaitingFilter::default()
    };
    Ok(outbox + session.waiting_list(&filter).await?.len() as u64)
}

pub async fn events(place: &Place, contestant: Contestant) -> anyhow::Result<Vec<Event>> {
    let store = open_store(&place.broker_file(contestant))?;
    let mut session = store.session("hapax demo").await?;
    let queues = queues(session.as_mut())?;
    let (mut events, mut last) = (Vec::new(), 0);
    loop {
        let messages = queues
            .deliver(EVENTS, last, u32::try_from(CHUNK)?, u64::MAX)
            .await?;
        let Some(end) = messages.last() else {
            return Ok(events);
        };
        last = end.sequence;
        for queued in &messages {
            events.push(event(&queued.message.properties, &queued.message.body)?);
        }
    }
}

fn queues(session: &mut dyn Session) -> anyhow::Result<&mut dyn Queues> {
    session
        .queues()
        .context("the embedded broker lives in a SQLite store")
}
