//! Clocks: the right one, and one that is wrong for a single process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use tokio::sync::OnceCell;

use super::place;

static LIBRARY: OnceCell<PathBuf> = OnceCell::const_new();

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is after 1970").as_secs()
}

/// Variables that make a process take another time of day for true: so many seconds after the right one, or before it
/// (Linux).
pub async fn skewed_by(seconds: i64) -> anyhow::Result<[(&'static str, String); 2]> {
    let library = LIBRARY.get_or_try_init(build).await?;
    Ok([
        ("LD_PRELOAD", library.display().to_string()),
        ("HAPAX_TEST_CLOCK_SKEW", seconds.to_string()),
    ])
}

async fn build() -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/skewed-clock.c");
    let library = place::root().join("skewed-clock.so");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .context("there is no C compiler")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(library)
}
