//! What tests of other languages need, and why they are skipped without it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

fn plugin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugins")
        .join(name)
}

fn runs(program: &Path) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// `Err` says what is missing.
pub fn python() -> Result<(), String> {
    let own = plugin("points-python").join(".venv/bin/componentize-py");
    match runs(&own) || runs(Path::new("componentize-py")) {
        true => Ok(()),
        false => Err(
            "there is no componentize-py; tests/run installs it where there is python3 with venv"
                .into(),
        ),
    }
}

pub fn javascript() -> Result<(), String> {
    if !runs(Path::new("node")) {
        return Err("there is no node".into());
    }
    let package = plugin("points-js").join("node_modules/@bytecodealliance/componentize-js");
    match package.is_dir() {
        true => Ok(()),
        false => {
            Err("there is no componentize-js; tests/run installs it where there is npm".into())
        }
    }
}

/// Interpreters alone, for tests that build nothing.
pub fn interpreters() -> Result<(), String> {
    match ["python3", "node"]
        .iter()
        .find(|name| !runs(Path::new(name)))
    {
        None => Ok(()),
        Some(name) => Err(format!("there is no {name}")),
    }
}

pub fn bare() -> Result<(), String> {
    bare_module().map(drop).map_err(|error| error.to_string())
}

/// The points handler for a target without WASI.
pub fn bare_module() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_hapax"))
        .parent()
        .and_then(Path::parent)
        .context("the binary lies in a target directory")?;
    let module = target.join("wasm32-unknown-unknown/plugin/points.wasm");
    ensure!(
        module.is_file(),
        "{} is missing; tests/run builds it where the Rust target wasm32-unknown-unknown can be had",
        module.display()
    );
    Ok(module)
}
