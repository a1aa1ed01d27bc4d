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
    ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    let what = format!("{what} to be {expected:?}");
    until_is(&what, ask, |found| *found == expected).await
}

/// Asks until the answer is as it should be, and shows the last one if it never is. As long as it changes there is
/// progress, and patience anew.
pub async fn until_is<T: PartialEq + Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<T>,
    is_enough: impl Fn(&T) -> bool,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut changed = started;
    let mut last = None;
    let ended = until(what, Duration::MAX, async || {
        let answer = ask().await.map_err(|error| format!("{error:#}"));
        if matches!(&answer, Ok(found) if is_enough(found)) {
            return Ok(Some(Ok(())));
        }
        if changed.elapsed() > PATIENCE || started.elapsed() > PATIENCE * 4 {
            let waited = started.elapsed().as_secs();
            return Ok(Some(Err(anyhow::anyhow!(
                "waited {waited} s for {what}, the last answer was {answer:?}"
            ))));
        }
        if answer.is_ok() && last.as_ref() != Some(&answer) {
            changed = Instant::now();
            last = Some(answer);
        }
        Ok(None)
    });
    ended.await?
}
