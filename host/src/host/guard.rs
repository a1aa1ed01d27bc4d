//! Watches over the parts of a host: one that panics has broken an invariant like any other, and what depends on it
//! stops, loudly. Nothing more is acknowledged then, and readiness says why.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::consumer::Consumer;
use crate::http::Readiness;
use crate::lane::Broken;

/// What stops when a part breaks.
#[derive(Clone)]
pub(super) struct Guard {
    pub consumers: Vec<Arc<Consumer>>,
    pub stop: CancellationToken,
    pub readiness: Arc<Readiness>,
}

impl Guard {
    /// Runs a part that ends when it is told to.
    pub async fn over(self, part: &'static str, work: impl Future<Output = ()>) {
        self.over_lane(part, work.map(Ok)).await;
    }

    /// Runs a part that may break by itself, too. Dropped, it takes the part along.
    pub async fn over_lane(
        self,
        part: &'static str,
        work: impl Future<Output = Result<(), Broken>>,
    ) {
        // What the part was in the middle of is not used again.
        let reason = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(Broken { error, .. })) => error.to_string(),
            Err(panic) => format!("the {part} panicked: {}", words(&*panic)),
        };
        self.stop.cancel();
        for consumer in &self.consumers {
            tracing::error!(
                consumer = %consumer.name, error = %reason,
                "Consumer stopped: an invariant is broken; nothing of its current batch is acknowledged"
            );
            consumer.metrics.up.set(0);
            self.readiness.broken(&consumer.name, reason.clone());
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard {
            consumers: Vec::new(),
            stop: CancellationToken::new(),
            readiness: Arc::new(Readiness::new(std::iter::empty())),
        }
    }

    #[tokio::test]
    async fn a_part_that_panics_stops_what_depends_on_it_and_one_that_ends_does_not() {
        let guard = guard();
        guard.clone().over("relay", async {}).await;
        assert!(!guard.stop.is_cancelled());
        let panics = async { panic!("a row that cannot be") };
        guard.clone().over("relay", panics).await;
        assert!(guard.stop.is_cancelled());
    }

    #[test]
    fn what_a_panic_says_is_told() {
        for panic in [
            Box::new("words") as Box<dyn Any + Send>,
            Box::new("words".to_owned()),
        ] {
            assert_eq!(words(&*panic), "words");
        }
    }
}
