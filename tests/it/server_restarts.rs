//! A server goes away under load and comes back. The host waits and goes on by itself.

use anyhow::ensure;

use crate::Checked;
use crate::support::lines::{Lines, PREFETCH};
use crate::support::orders;
use crate::support::place::Place;
use crate::support::servers::{self, Postgres, Rabbit};
use crate::support::wait;

const ORDERS: usize = 4_000;
const CUTS: usize = 4;

pub async fn the_broker_is_restarted_and_then_killed(place: &Place) -> Checked {
    let rabbit = Rabbit::start("rabbit-restarted").await?;
    let mut lines = Lines::between(place, &rabbit, servers::postgres().await?, ORDERS, 2).await?;
    lines.until_in_the_middle().await?;
    rabbit.stop()?;
    lines.go_on();
    rabbit.start_again().await?;

    lines.until_in_the_middle().await?;
    rabbit.kill9()?;
    lines.go_on();
    rabbit.start_again().await?;
    lines.assert_survived().await
}

pub async fn the_database_is_restarted_and_then_killed(place: &Place) -> Checked {
    let postgres = Postgres::start("postgres-restarted").await?;
    let mut lines = Lines::between(place, servers::rabbit().await?, &postgres, ORDERS, 2).await?;
    lines.until_in_the_middle().await?;
    postgres.stop()?;
    lines.go_on();
    postgres.start_again().await?;

    lines.until_in_the_middle().await?;
    postgres.kill9()?;
    lines.go_on();
    postgres.start_again().await?;
    lines.assert_survived().await
}

pub async fn the_line_to_the_broker_is_cut_again_and_again(place: &Place) -> Checked {
    let (rabbit, postgres) = (servers::rabbit().await?, servers::postgres().await?);
    let mut lines = Lines::between(place, rabbit, postgres, ORDERS, CUTS).await?;
    for _ in 0..CUTS {
        lines.until_in_the_middle().await?;
        lines.to_broker.cut();
        lines.go_on();
    }
    lines.assert_survived().await
}

pub async fn the_line_to_the_database_falls_silent_and_is_refused(place: &Place) -> Checked {
    let (rabbit, postgres) = (servers::rabbit().await?, servers::postgres().await?);
    let mut lines = Lines::between(place, rabbit, postgres, ORDERS, 2).await?;
    lines.until_in_the_middle().await?;
    lines
        .host
        .until_metric("hapax_deliveries_total", PREFETCH)
        .await?;
    let ready = lines.broker.depth(orders::QUEUE).await?.ready;
    lines.to_database.silence(true);
    lines.go_on();
    lines.to_database.refuse(true);
    lines.to_database.silence(false);
    wait::until("the host to meet the refusal", wait::PATIENCE, async || {
        Ok((lines.setbacks().await? > 0).then_some(()))
    })
    .await?;
    // What a silent database holds up is neither acknowledged nor given back.
    let now = lines.broker.depth(orders::QUEUE).await?.ready;
    ensure!(
        now == ready,
        "{ready} messages were ready, and {now} are: some were given back, or acknowledged"
    );
    lines.to_database.refuse(false);
    lines.assert_survived().await
}
