//! File systems of a test's own: small ones, which fill up, and ones that cannot be written.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

/// A file system in memory. It goes when this is dropped.
pub struct Mount {
    pub directory: PathBuf,
}

/// `Err` says why there can be none.
pub fn mounts() -> Result<(), String> {
    let place = std::env::temp_dir().join(format!("hapax-it-mount-{}", std::process::id()));
    let tried = Mount::small(&place, "4k").map(drop);
    // It is empty, or was never made.
    let _ = std::fs::remove_dir(&place);
    tried.map_err(|error| format!("no file system can be mounted: {error}"))
}

impl Mount {
    pub fn small(directory: &Path, size: &str) -> anyhow::Result<Mount> {
        std::fs::create_dir_all(directory)?;
        let options = format!("size={size},mode=700");
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], directory)?;
        Ok(Mount {
            directory: directory.to_owned(),
        })
    }

    /// Gives it other options.
    pub fn again(&self, options: &str) -> anyhow::Result<()> {
        mount(&["-o", &format!("remount,{options}")], &self.directory)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a host that a failed test has left may hold a file.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.directory)
            .status();
    }
}

fn mount(arguments: &[&str], directory: &Path) -> anyhow::Result<()> {
    let output = Command::new("mount")
        .args(arguments)
        .arg(directory)
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
