//! `hapax build`: a project in Rust, Python or JavaScript → a component that a host can load.
//!
//! The component is loaded before it is put in its place, so that a build that is no handler never
//! replaces one that is. What is missing on the machine is added where that is possible, else it is said
//! what to type.

mod cargo;
mod javascript;
mod python;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::Args;
use serde_json::json;

use crate::config::{self, Limits};
use crate::output::{self, GOOD};
use crate::sandbox::{Cache, LoadError, Plugin, Sandbox, SandboxError, SandboxOptions, write_file};

use super::project::Language;
use super::{Error, FAILED, UNAVAILABLE, USAGE, print_json};

/// What components are built for.
const WASM_TARGET: &str = "wasm32-wasip2";

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The directory of the plugin's project
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Do not show what the toolchain says
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
    #[error(
        "there is no Cargo.toml, pyproject.toml or package.json in {}; name the directory of a plugin's project \
         (`hapax new` makes one)", .0.display()
    )]
    NoProject(PathBuf),
    #[error("{}: {reason}", .file.display())]
    Project { file: PathBuf, reason: String },
    #[error(
        "componentize-py is missing: in the project's directory, type\n\n  \
         python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1"
    )]
    NoComponentizePy,
    #[error("node is missing: install Node.js 20 or later, then run this again")]
    NoNode,
    #[error(
        "the package @bytecodealliance/componentize-js is missing: in the project's directory, type\n\n  \
         npm install"
    )]
    NoComponentizeJs,
    #[error("{program} has failed{}{output}", if .output.is_empty() { "; its messages are above" } else { ":\n" })]
    Tool {
        program: &'static str,
        output: String,
    },
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
    #[error("the plugin was built, and is not a handler: {0}")]
    Load(#[from] LoadError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl BuildError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoCargo
            | Self::NoRustup
            | Self::NoTarget { .. }
            | Self::NoComponentizePy
            | Self::NoNode
            | Self::NoComponentizeJs
            | Self::Program { .. } => UNAVAILABLE,
            Self::NoCrate(_)
            | Self::NoProject(_)
            | Self::Project { .. }
            | Self::OnlyWorkspace(_)
            | Self::NoLibrary(_) => USAGE,
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

pub async fn command(arguments: BuildArgs) -> Result<(), Error> {
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

/// Builds the project in a directory and returns the path of its component, `target/hapax/NAME.wasm`; a
/// crate's is in the target directory of its workspace. The toolchain shows its progress on standard error.
/// Once begun it is finished, also when the future is dropped.
pub async fn build(dir: &Path) -> Result<PathBuf, BuildError> {
    let dir = dir.to_owned();
    let built = tokio::task::spawn_blocking(move || build_plugin(&dir, Noise::Shown)).await;
    built
        .expect("building does not panic")
        .map(|(path, _)| path)
}

/// What a toolchain has made.
struct Made {
    name: String,
    component: PathBuf,
    target_directory: PathBuf,
}

/// Blocks for as long as the toolchain takes.
fn build_plugin(dir: &Path, noise: Noise) -> Result<(PathBuf, Plugin), BuildError> {
    let dir = &dir
        .canonicalize()
        .map_err(|_| BuildError::NoProject(dir.to_owned()))?;
    let made = match Language::of(dir) {
        Some(Language::Rust) => cargo::make(dir, noise)?,
        Some(Language::Python) => python::build(dir, noise)?,
        Some(Language::JavaScript) => javascript::build(dir)?,
        None => return Err(BuildError::NoProject(dir.to_owned())),
    };
    let bytes = std::fs::read(&made.component).map_err(|error| BuildError::Write {
        path: made.component.clone(),
        error,
    })?;
    let limits = Limits::default();
    let sandbox = Sandbox::new(SandboxOptions {
        concurrent_instances: 1,
        max_memory: limits.memory,
        max_table_elements: limits.table_elements,
        metered: false,
        compile_timeout: config::COMPILE_TIMEOUT,
    })?;
    // A host on this machine will want the same machine code.
    let cache = config::default_cache().and_then(|place| Cache::open(&place));
    let plugin = Plugin::from_cache(&sandbox, &made.name, &bytes, cache.as_ref())?;
    let path = made
        .target_directory
        .join("hapax")
        .join(format!("{}.wasm", made.name));
    let put = || {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        // In one step: a host may be reading it.
        write_file(&path, &[&bytes])
    };
    put().map_err(|error| BuildError::Write {
        path: path.clone(),
        error,
    })?;
    Ok((path, plugin))
}

/// The place for what a build needs on its way.
fn scratch(dir: &Path) -> Result<PathBuf, BuildError> {
    let path = dir.join("target/hapax/build");
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(BuildError::Write { path, error }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    let written = std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| std::fs::write(path, text));
    written.map_err(|error| BuildError::Write {
        path: path.to_owned(),
        error,
    })
}

fn run(mut command: Command, noise: Noise) -> io::Result<Output> {
    command.stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    if noise == Noise::Shown {
        command.stderr(Stdio::inherit());
    }
    command.spawn()?.wait_with_output()
}

/// The end of what a tool said: the error stands there.
fn tool_failed(program: &'static str, said: &str) -> BuildError {
    const LINES: usize = 40;
    let lines: Vec<_> = said.lines().collect();
    BuildError::Tool {
        program,
        output: lines[lines.len().saturating_sub(LINES)..].join("\n"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}
