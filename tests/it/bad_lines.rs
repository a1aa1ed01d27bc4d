//! The lines to the broker and to the database are slow, go dead without a word, and are reset. The host
//! notices, connects again, and applies each order once.

use std::time::Duration;

use anyhow::ensure;

use crate::Checked;
use crate::support::lines::{LANES, Lines};
use crate::support::place::Place;
use crate::support::proxy::Commits;
use crate::support::{servers, wait};

const ORDERS: usize = 4_000;
const RESETS: usize = 6;

async fn lines(place: &Place, orders: usize, portions: usize) -> anyhow::Result<Lines> {
    let (rabbit, postgres) = (servers::rabbit().await?, servers::postgres().await?);
    Lines::between(place, rabbit, postgres, orders, portions).await
}

pub async fn slow_ones_only_take_longer(place: &Place) -> Checked {
    let mut lines = lines(place, 400, 1).await?;
    lines.to_broker.delay(Duration::from_millis(15));
    lines.to_database.delay(Duration::from_millis(15));
    lines.publish().await?;
    lines.until_settled().await?;
    // Each answer takes its time however much it is about, so batches stay wide.
    let messages = lines.host.metric("hapax_batch_messages_sum").await?;
    let batches = lines.host.metric("hapax_batch_messages_count").await?;
    ensure!(
        messages >= 4 * batches,
        "{messages} messages took {batches} transactions"
    );
    lines.assert_survived().await
}

pub async fn that_are_reset_again_and_again_lose_and_double_nothing(place: &Place) -> Checked {
    let mut lines = lines(place, ORDERS, RESETS).await?;
    for turn in 0..RESETS {
        lines.until_in_the_middle().await?;
        match turn % 2 {
            0 => lines.to_broker.reset(),
            _ => lines.to_database.reset(),
        }
        lines.go_on();
        // Every lane was hit: it has lost its transaction, or its messages come again.
        let hits = (LANES * (turn / 2 + 1)) as u64;
        match turn % 2 {
            0 => {
                lines
                    .host
                    .until_metric("hapax_redeliveries_total", hits)
                    .await?
            }
            _ => {
                wait::until(
                    "each lane to lose the database",
                    wait::PATIENCE,
                    async || Ok((lines.setbacks().await? >= hits).then_some(())),
                )
                .await?;
            }
        }
    }
    lines.assert_survived().await
}

pub async fn that_go_dead_without_a_word_are_given_up(place: &Place) -> Checked {
    let mut lines = lines(place, ORDERS, 2).await?;
    lines.until_in_the_middle().await?;
    lines.to_broker.silence(true);
    lines.go_on();
    // The host's own heartbeats tell it; nobody has closed anything.
    wait::until_equal("the consumers that are subscribed", 0, async || {
        lines.host.metric("hapax_consumer_up").await
    })
    .await?;
    lines.to_broker.silence(false);

    lines.until_in_the_middle().await?;
    let committed = lines.host.metric("hapax_committed_total").await?;
    lines.to_database.silence(true);
    lines.go_on();
    wait::until("the host to miss its store", wait::PATIENCE, async || {
        let (status, reasons) = lines.host.page("/readyz").await?;
        Ok((status == 503 && reasons.contains("the store does not answer")).then_some(()))
    })
    .await?;
    // Each lane waits for the answer of a COMMIT that the database has not seen.
    let now = lines.host.metric("hapax_committed_total").await?;
    ensure!(now == committed, "{now} committed over a dead line");
    lines.to_database.silence(false);
    lines.assert_survived().await
}

pub async fn that_are_reset_in_the_answer_of_a_commit_leave_no_doubt(place: &Place) -> Checked {
    let mut lines = lines(place, ORDERS, 1).await?;
    lines
        .to_database
        .commits(Commits::ResetInAnswer { times: 8 });
    lines.publish().await?;
    lines
        .to_database
        .until("eight answers to be torn", |tally| {
            tally.reset_in_answer == 8
        })
        .await?;
    lines.assert_survived().await
}
