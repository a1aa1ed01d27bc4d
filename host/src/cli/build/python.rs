//! What is asked of componentize-py.
//!
//! The module that makes a component of a handler is made here; `hapax` comes from the project where it has
//! its own, else from this program.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::new::{PYTHON_SDK, WIT};
use super::{BuildError, Made, Noise, run, scratch, text, tool_failed, write};

const PROGRAM: &str = "componentize-py";

/// What the project's `pyproject.toml` says.
struct Settings {
    name: String,
    /// The module with the function `handle`.
    module: String,
    /// Where Python looks for modules, from the project's directory.
    paths: Vec<String>,
}

/// Builds, and returns what came out.
pub fn build(dir: &Path, noise: Noise) -> Result<Made, BuildError> {
    let settings = read(&dir.join("pyproject.toml"))?;
    let scratch = scratch(dir)?;
    let app = format!(
        "from {} import handle\nfrom hapax.component import component\n\nWitWorld = component(handle)\n",
        settings.module
    );
    write(&scratch.join("hapax_app.py"), &app)?;
    for (path, text) in PYTHON_SDK {
        write(&scratch.join("sdk").join(path), text)?;
    }
    let wit = match dir.join("wit") {
        own if own.is_dir() => own,
        _ => {
            write(&scratch.join("wit/plugin.wit"), WIT)?;
            scratch.join("wit")
        }
    };
    let component = scratch.join("component.wasm");
    let mut command = Command::new(find(dir));
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .arg("-d")
        .arg(&wit)
        .args(["-w", "handler", "componentize", "hapax_app", "-o"])
        .arg(&component);
    for path in &settings.paths {
        command.arg("-p").arg(dir.join(path));
    }
    command
        .arg("-p")
        .arg(&scratch)
        .arg("-p")
        .arg(scratch.join("sdk"));
    let output = run(command, noise).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => BuildError::NoComponentizePy,
        _ => BuildError::Program {
            program: PROGRAM,
            error,
        },
    })?;
    if !output.status.success() {
        return Err(tool_failed(PROGRAM, &text(&output.stderr)));
    }
    Ok(Made {
        name: settings.name,
        component,
        target_directory: dir.join("target"),
    })
}

fn read(file: &Path) -> Result<Settings, BuildError> {
    let bad = |reason: String| BuildError::Project {
        file: file.to_owned(),
        reason,
    };
    let text = fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| bad(error.message().to_owned()))?;
    let name = table
        .get("project")
        .and_then(|project| project.get("name")?.as_str())
        .ok_or_else(|| bad("it has no `name` in [project]".into()))?;
    let own = table.get("tool").and_then(|tool| tool.get("hapax"));
    let paths = own.and_then(|own| own.get("paths")?.as_array());
    Ok(Settings {
        name: name.to_owned(),
        module: own
            .and_then(|own| own.get("module")?.as_str())
            .unwrap_or("handler")
            .to_owned(),
        paths: match paths {
            Some(paths) => paths
                .iter()
                .filter_map(|path| path.as_str().map(str::to_owned))
                .collect(),
            None => vec![".".to_owned()],
        },
    })
}

/// The project's own, that of the environment that is active, or whatever is in `PATH`.
fn find(dir: &Path) -> OsString {
    let active = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    [Some(dir.join(".venv")), active]
        .into_iter()
        .flatten()
        .flat_map(|environment| [environment.join("bin"), environment.join("Scripts")])
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
        .and_then(|program| program.canonicalize().ok())
        .map_or_else(|| PROGRAM.into(), PathBuf::into_os_string)
}
