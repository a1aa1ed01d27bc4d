//! A test's own corner: a directory, a seed, and the logs that are shown when it fails.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context;

/// The directory of this run. Everything the run writes lies below it.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Lines of a log that are shown when a test fails.
const TAIL_LINES: usize = 40;

pub struct Place {
    pub dir: PathBuf,
    /// `HAPAX_TEST_SEED` or a random number; everything random in a test comes from it.
    pub seed: u64,
}

impl Place {
    /// A directory named after the test.
    pub fn of(test: &str) -> anyhow::Result<Place> {
        let seed = match std::env::var("HAPAX_TEST_SEED") {
            Ok(text) => text.parse().context("HAPAX_TEST_SEED is not a number")?,
            Err(_) => fastrand::u64(..),
        };
        Ok(Place {
            dir: directory(test)?,
            seed,
        })
    }

    /// What the host of a configuration has written so far.
    pub fn log(&self, label: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(
            self.dir.join(format!("{label}.log")),
        )?)
    }

    pub fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    /// What a person needs to look into a failure: the seed and the ends of the logs.
    pub fn evidence(&self) -> String {
        format!(
            "\n\nHAPAX_TEST_SEED={} repeats it{}",
            self.seed,
            log_tails(&self.dir)
        )
    }
}

/// The directory of this run, made when first asked for.
pub fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        let name = format!("hapax-it-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        make_traversable(&root).expect("the directory for temporary files is writable");
        root
    })
}

/// Removes everything the run wrote, if it wrote anything.
pub fn remove_root() {
    if let Some(root) = ROOT.get() {
        // What cannot be removed does no harm and has no bearing on the verdict.
        let _ = std::fs::remove_dir_all(root);
    }
}

/// A new directory below the root. Characters that paths dislike become `-`.
pub fn directory(name: &str) -> anyhow::Result<PathBuf> {
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let dir = root().join(name);
    make_traversable(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The last lines of every `*.log` in `dir`.
pub fn log_tails(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return String::new();
    };
    let mut logs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs.iter().map(|log| tail(log)).collect()
}

/// The last lines of one log, under its name.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    format!("\n--- {name}, end ---\n{}\n", lines[from..].join("\n"))
}

/// Other users may pass through, so that a server that runs as `postgres` reaches its data.
fn make_traversable(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}
