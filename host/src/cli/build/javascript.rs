//! What is asked of componentize-js, as a library: node runs it in the project's directory, so that the
//! project's own packages count. It reads modules below one directory and follows no link out of it, so the
//! project's modules are copied to one first.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::super::new::WIT;
use super::{BuildError, Made, Noise, run, scratch, text, tool_failed, write};

const PACKAGE: &str = "@bytecodealliance/componentize-js";

/// Directories of a project that hold no module of the handler.
const NOT_SOURCES: &[&str] = &["node_modules", "target"];

/// `http` and `fetch-event` would import what no handler is granted.
const SCRIPT: &str = r"
import { writeFile } from 'node:fs/promises';
const { componentize } = await import('@bytecodealliance/componentize-js');
const [sourcePath, witPath, output] = process.argv.slice(1);
const { component } = await componentize({
  sourcePath, witPath, worldName: 'handler', disableFeatures: ['http', 'fetch-event'],
});
await writeFile(output, component);
";

/// Builds, and returns what came out.
pub fn build(dir: &Path) -> Result<Made, BuildError> {
    let file = dir.join("package.json");
    let bad = |reason: String| BuildError::Project {
        file: file.clone(),
        reason,
    };
    let package: Value = fs::read_to_string(&file)
        .map_err(|error| bad(error.to_string()))
        .and_then(|text| serde_json::from_str(&text).map_err(|error| bad(error.to_string())))?;
    let name = package["name"]
        .as_str()
        .and_then(|name| name.rsplit('/').next())
        .ok_or_else(|| bad("it has no `name`".into()))?;
    let main = package["main"].as_str().unwrap_or("handler.js");
    if !dir.join(main).is_file() {
        return Err(bad(format!("its `main`, {main}, is not there")));
    }
    let scratch = scratch(dir)?;
    let sources = scratch.join("src");
    // Modules that are gone must not be found.
    let _ = fs::remove_dir_all(&sources);
    copy_modules(dir, &sources).map_err(|error| BuildError::Write {
        path: sources.clone(),
        error,
    })?;
    let wit = match dir.join("wit") {
        own if own.is_dir() => own,
        _ => {
            write(&scratch.join("wit/plugin.wit"), WIT)?;
            scratch.join("wit")
        }
    };
    let component = scratch.join("component.wasm");
    let mut command = Command::new("node");
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .args(["--input-type=module", "-e", SCRIPT, "--"])
        .arg(sources.join(main))
        .arg(&wit)
        .arg(&component);
    // It says nothing while it works, and what it says at the end has to be read.
    let output = run(command, Noise::Kept).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => BuildError::NoNode,
        _ => BuildError::Program {
            program: "node",
            error,
        },
    })?;
    if !output.status.success() {
        let said = text(&output.stderr);
        if said.contains("ERR_MODULE_NOT_FOUND") && said.contains(PACKAGE) {
            return Err(BuildError::NoComponentizeJs);
        }
        return Err(tool_failed(PACKAGE, &said));
    }
    Ok(Made {
        name: name.to_owned(),
        component,
        target_directory: dir.join("target"),
    })
}

/// Copies what can be imported, and what links lead to.
fn copy_modules(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if path.is_dir() {
            if !hidden && !NOT_SOURCES.iter().any(|other| name == *other) {
                copy_modules(&path, &to.join(name))?;
            }
        } else if is_module(&path) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Tests are left where they are: node would find and run their copies.
fn is_module(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let ending = [".js", ".mjs", ".json"]
        .iter()
        .any(|one| name.ends_with(one));
    ending && !name.contains(".test.")
}
