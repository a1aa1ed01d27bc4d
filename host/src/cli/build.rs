//! `hapax build`: a Rust crate → a component that a host can load.
//!
//! The component is loaded before it is put in its place, so that a build that is no handler never
//! replaces one that is. What is missing on the machine is added where that is possible, else it is said
//! what to type.

mod cargo;

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::config::Limits;
use crate::output::{self, GOOD};
use crate::sandbox::{LoadError, Plugin, Sandbox, SandboxError, SandboxOptions};

use super::{Error, FAILED, UNAVAILABLE, USAGE, print_json};

/// What components are built for.
const WASM_TARGET: &str = "wasm32-wasip2";

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The directory of the plugin's crate
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Do not show what cargo does
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whether a person watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noise {
    /// Cargo writes its progress to standard error.
    Shown,
    /// Cargo's messages are kept for the error.
    Kept,
}

/// Why there is no component. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cargo is missing: install Rust from https://rustup.rs, then run this again")]
    NoCargo,
    #[error("{program} cannot be run: {error}")]
    Program {
        program: &'static str,
        error: io::Error,
    },
    #[error(
        "the Rust target {WASM_TARGET} is missing, and there is no rustup to add it; install it with what installed Rust"
    )]
    NoRustup,
    #[error(
        "the Rust target {WASM_TARGET} cannot be added; when the network is back, type: rustup target add {WASM_TARGET}\n{output}"
    )]
    NoTarget { output: String },
    #[error("there is no Cargo.toml in {}; name the directory of a plugin's crate", .0.display())]
    NoCrate(PathBuf),
    #[error("{} is a workspace without a crate of its own; name the directory of one of its crates", .0.display())]
    OnlyWorkspace(PathBuf),
    #[error(
        "the crate {0} makes no component; add to its Cargo.toml:\n\n[lib]\ncrate-type = [\"cdylib\"]"
    )]
    NoLibrary(String),
    #[error("cargo has failed{}{output}", if .output.is_empty() { "; its messages are above" } else { ":\n" })]
    Failed { output: String },
    #[error("cargo's answer is not understood: {0}")]
    Answer(String),
    #[error("{} cannot be written: {error}", .path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("the crate was built, and is not a handler: {0}")]
    Load(#[from] LoadError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl BuildError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoCargo | Self::NoRustup | Self::NoTarget { .. } | Self::Program { .. } => {
                UNAVAILABLE
            }
            Self::NoCrate(_) | Self::OnlyWorkspace(_) | Self::NoLibrary(_) => USAGE,
            _ => FAILED,
        }
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self::Other {
            code: error.exit_code(),
            text: error.to_string(),
        }
    }
}

pub async fn run(arguments: BuildArgs) -> Result<(), Error> {
    let noise = if arguments.quiet {
        Noise::Kept
    } else {
        Noise::Shown
    };
    let dir = arguments.dir;
    let built = tokio::task::spawn_blocking(move || build_plugin(&dir, noise)).await;
    let (path, plugin) = built.expect("building does not panic")?;
    let digest = hex::encode(plugin.digest());
    let path = path.display().to_string();
    if arguments.json {
        let imports = plugin
            .imports()
            .iter()
            .map(|import| &import.name)
            .collect::<Vec<_>>();
        return print_json(&json!({
            "path": path, "size_bytes": plugin.size_bytes(), "digest": digest, "imports": imports,
        }));
    }
    let text = format!(
        "{GOOD}{path}{GOOD:#}\n{} KiB, sha256 {digest}\n",
        output::thousands(plugin.size_bytes().div_ceil(1024))
    );
    Ok(output::print(&text)?)
}

/// Builds the crate in a directory and returns the path of its component, `target/hapax/NAME.wasm` of its
/// workspace. Cargo shows its progress on standard error. Once begun it is finished, also when the future
/// is dropped.
pub async fn build(dir: &Path) -> Result<PathBuf, BuildError> {
    let dir = dir.to_owned();
    let built = tokio::task::spawn_blocking(move || build_plugin(&dir, Noise::Shown)).await;
    built
        .expect("building does not panic")
        .map(|(path, _)| path)
}

/// Blocks for as long as cargo takes.
fn build_plugin(dir: &Path, noise: Noise) -> Result<(PathBuf, Plugin), BuildError> {
    let found = cargo::find_crate(dir)?;
    cargo::add_target(dir, noise)?;
    let built = cargo::build(&found, noise)?;
    let bytes = std::fs::read(&built).map_err(|error| BuildError::Write {
        path: built.clone(),
        error,
    })?;
    let limits = Limits::default();
    let sandbox = Sandbox::new(SandboxOptions {
        concurrent_instances: 1,
        max_memory: limits.memory,
        max_table_elements: limits.table_elements,
    })?;
    let plugin = Plugin::from_bytes(&sandbox, &found.name, &bytes)?;
    let path = found
        .target_directory
        .join("hapax")
        .join(format!("{}.wasm", found.name));
    put(&path, &bytes).map_err(|error| BuildError::Write {
        path: path.clone(),
        error,
    })?;
    Ok((path, plugin))
}

/// Replaces a file in one step: a host may be reading it.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let new = path.with_extension(format!("wasm.{}", std::process::id()));
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}
