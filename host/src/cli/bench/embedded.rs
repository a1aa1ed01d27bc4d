//! The queues of a measurement in the embedded broker: a file that no other process has open at the time.

use std::sync::Arc;

use anyhow::{Context, ensure};

use super::place::Place;
use crate::cli::demo::broker::{open_store, order_message};
use crate::cli::demo::orders::Order;
use crate::store::{Queues, Session, Store};

/// Messages in one transaction.
const CHUNK: usize = 1_000;

pub async fn make(place: &Place) -> anyhow::Result<()> {
    let store = open(place)?;
    store.migrate().await?;
    let mut session = store.session("hapax bench").await?;
    let queues = queues(session.as_mut())?;
    queues.declare(&place.incoming()).await?;
    Ok(queues.declare(&place.outgoing()).await?)
}

pub async fn fill(place: &Place, orders: &[Order]) -> anyhow::Result<()> {
    let store = open(place)?;
    let mut session = store.session("hapax bench").await?;
    let queues = queues(session.as_mut())?;
    let queue = place.incoming();
    for chunk in orders.chunks(CHUNK) {
        let messages = chunk
            .iter()
            .map(|order| (queue.clone(), order_message(&queue, order)))
            .collect::<Vec<_>>();
        let taken = queues.publish(&messages).await?;
        ensure!(
            taken.iter().all(|taken| *taken),
            "the embedded broker did not take the orders"
        );
    }
    Ok(())
}

pub async fn depths(place: &Place) -> anyhow::Result<(u64, u64)> {
    let store = open(place)?;
    let mut session = store.session("hapax bench").await?;
    let queues = queues(session.as_mut())?;
    let incoming = queues.depth(&place.incoming()).await?;
    let outgoing = queues.depth(&place.outgoing()).await?;
    let gone = "a queue of the measurement is gone";
    Ok((incoming.context(gone)?, outgoing.context(gone)?))
}

fn open(place: &Place) -> anyhow::Result<Arc<dyn Store>> {
    open_store(&place.store_file())
}

pub fn queues(session: &mut dyn Session) -> anyhow::Result<&mut dyn Queues> {
    session
        .queues()
        .context("the embedded broker lives in a SQLite store")
}
