//! Waits for a condition by asking for it, up to a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Long enough for a slow machine under load; a test that works never waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is `Some`. The error names what was waited for and for how long.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let answer = ask().await;
        match answer {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if started.elapsed() > patience => {
                anyhow::bail!("waited {} s for: {what}", patience.as_secs())
            }
            Err(error) if started.elapsed() > patience => {
                return Err(error.context(format!(
                    "waited {} s for: {what}; the last answer was an error",
                    patience.as_secs()
                )));
            }
            Ok(None) | Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Asks until the answer equals `expected`, and shows the last answer if it never does.
pub async fn until_equal<T: PartialEq + Debug>(
    what: &str,
    expected: T,
    mut ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let answer = ask().await;
        if matches!(&answer, Ok(found) if *found == expected) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            anyhow::bail!(
                "waited {} s for {what} to be {expected:?}, the last answer was {answer:?}",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
