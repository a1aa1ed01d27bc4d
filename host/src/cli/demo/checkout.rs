//! Finds the source of the `points` plugin, and builds it.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::build;

/// The plugin of the demo.
pub const POINTS: &str = "plugins/points";

/// The plugin of the benchmark.
pub const BENCH: &str = "plugins/bench";

/// Builds one of the plugins; returns its component.
pub async fn build_plugin(plugin: &str) -> anyhow::Result<PathBuf> {
    let working = std::env::current_dir().unwrap_or_default();
    let starts = [Path::new(env!("CARGO_MANIFEST_DIR")), &working];
    let dir = find(plugin, starts).with_context(|| {
        format!(
            "{plugin} is built from the source of Hapax, which is not here: clone the repository and run \
             this command in it, with `cargo run --release --` in place of `hapax`"
        )
    })?;
    Ok(build(&dir).await?)
}

/// The plugin in the first checkout that one of the directories is in.
fn find<'p>(plugin: &str, starts: impl IntoIterator<Item = &'p Path>) -> Option<PathBuf> {
    starts
        .into_iter()
        .flat_map(Path::ancestors)
        .map(|dir| dir.join(plugin))
        .find(|dir| dir.join("Cargo.toml").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_found_from_a_directory_below_the_checkout() {
        let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli");
        let nowhere = Path::new("/nowhere/at/all");
        let found = find(POINTS, [nowhere, &below]).expect("the tests run in a checkout");
        assert!(
            found.ends_with(POINTS) && found.join("src/lib.rs").is_file(),
            "{}",
            found.display()
        );
        assert_eq!(find(POINTS, [nowhere]), None);
    }
}
