//! What is asked of cargo, rustc and rustup. They run in the crate's directory, so that its toolchain file
//! counts.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{BuildError, Made, Noise, WASM_TARGET, run, text};

/// The profile that a workspace defines for its plugins.
const PROFILE: &str = "plugin";

/// A crate that can be built into a component.
struct Crate {
    name: String,
    target_directory: PathBuf,
    manifest: PathBuf,
    profile: &'static str,
}

/// Builds the crate in a directory, and returns what came out.
pub fn make(dir: &Path, noise: Noise) -> Result<Made, BuildError> {
    let found = find_crate(dir)?;
    add_target(dir, noise)?;
    Ok(Made {
        component: build(&found, noise)?,
        name: found.name,
        target_directory: found.target_directory,
    })
}

/// Asks cargo what is in a directory.
fn find_crate(dir: &Path) -> Result<Crate, BuildError> {
    let missing = || BuildError::NoCrate(dir.to_owned());
    let manifest = dir
        .join("Cargo.toml")
        .canonicalize()
        .map_err(|_| missing())?;
    let mut command = program("cargo", dir);
    command
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(&manifest)
        .stderr(Stdio::piped());
    let output = command.output().map_err(|error| not_run("cargo", error))?;
    if !output.status.success() {
        return Err(BuildError::Failed {
            output: text(&output.stderr),
        });
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| BuildError::Answer(error.to_string()))?;
    read_metadata(&metadata, &manifest, dir)
}

fn read_metadata(metadata: &Value, manifest: &Path, dir: &Path) -> Result<Crate, BuildError> {
    let path = |name: &str| {
        let path = metadata[name].as_str().map(PathBuf::from);
        path.ok_or_else(|| BuildError::Answer(format!("it has no {name}")))
    };
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let package = packages
        .iter()
        .find(|package| {
            package["manifest_path"]
                .as_str()
                .is_some_and(|path| Path::new(path) == manifest)
        })
        .ok_or_else(|| BuildError::OnlyWorkspace(dir.to_owned()))?;
    let name = package["name"].as_str().unwrap_or_default().to_owned();
    let targets = package["targets"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if !targets.iter().any(is_component) {
        return Err(BuildError::NoLibrary(name));
    }
    let workspace =
        std::fs::read_to_string(path("workspace_root")?.join("Cargo.toml")).unwrap_or_default();
    let profiles = workspace.parse::<toml::Table>().ok();
    let defined = profiles
        .and_then(|file| file.get("profile")?.get(PROFILE).cloned())
        .is_some();
    Ok(Crate {
        name,
        target_directory: path("target_directory")?,
        manifest: manifest.to_owned(),
        profile: if defined { PROFILE } else { "release" },
    })
}

/// Whether a target of cargo's metadata, or of one of its messages, is a library that becomes a component.
fn is_component(target: &Value) -> bool {
    let kinds = target["crate_types"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    kinds.iter().any(|kind| kind == "cdylib")
}

/// Adds the target to the toolchain when it is missing.
fn add_target(dir: &Path, noise: Noise) -> Result<(), BuildError> {
    let sysroot = program("rustc", dir)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| not_run("rustc", error))?;
    let sysroot = PathBuf::from(text(&sysroot.stdout).trim());
    if sysroot.join("lib/rustlib").join(WASM_TARGET).is_dir() {
        return Ok(());
    }
    let mut command = program("rustup", dir);
    command.args(["target", "add", WASM_TARGET]);
    let output = match run(command, noise) {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BuildError::NoRustup),
        Err(error) => {
            return Err(BuildError::Program {
                program: "rustup",
                error,
            });
        }
    };
    match output.status.success() {
        true => Ok(()),
        false => Err(BuildError::NoTarget {
            output: text(&output.stderr),
        }),
    }
}

/// Builds, and returns the path of what came out.
fn build(found: &Crate, noise: Noise) -> Result<PathBuf, BuildError> {
    let dir = found.manifest.parent().unwrap_or(Path::new("."));
    let mut command = program("cargo", dir);
    command
        .args([
            "build",
            "--lib",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args([
            "--target",
            WASM_TARGET,
            "--profile",
            found.profile,
            "--manifest-path",
        ])
        .arg(&found.manifest);
    let output = run(command, noise).map_err(|error| not_run("cargo", error))?;
    if !output.status.success() {
        return Err(BuildError::Failed {
            output: text(&output.stderr),
        });
    }
    component(&output.stdout, &found.manifest)
        .ok_or_else(|| BuildError::Answer("it names no component".to_owned()))
}

/// The component among the files that cargo's messages name.
fn component(messages: &[u8], manifest: &Path) -> Option<PathBuf> {
    let messages = messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let ours = messages.filter(|message| {
        message["reason"] == "compiler-artifact"
            && message["manifest_path"]
                .as_str()
                .is_some_and(|path| Path::new(path) == manifest)
            && is_component(&message["target"])
    });
    let files = ours
        .filter_map(|message| message["filenames"].as_array().cloned())
        .flatten();
    files
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .find(|file| file.extension() == Some(OsStr::new("wasm")))
}

fn program(name: &'static str, dir: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(dir).stdin(Stdio::null());
    command
}

fn not_run(program: &'static str, error: io::Error) -> BuildError {
    match error.kind() {
        io::ErrorKind::NotFound => BuildError::NoCargo,
        _ => BuildError::Program { program, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(crate_types: &[&str]) -> Value {
        json!({
            "workspace_root": "/nowhere",
            "target_directory": "/nowhere/target",
            "packages": [
                { "name": "other", "manifest_path": "/nowhere/other/Cargo.toml", "targets": [] },
                {
                    "name": "my-points",
                    "manifest_path": "/nowhere/points/Cargo.toml",
                    "targets": [{ "crate_types": crate_types, "name": "my_points" }],
                },
            ],
        })
    }

    fn read(crate_types: &[&str], manifest: &str) -> Result<Crate, BuildError> {
        read_metadata(
            &metadata(crate_types),
            Path::new(manifest),
            Path::new("points"),
        )
    }

    #[test]
    fn a_crate_is_found_by_its_manifest_and_built_for_release_without_a_profile() {
        let found = read(&["cdylib", "rlib"], "/nowhere/points/Cargo.toml")
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (found.name.as_str(), found.profile),
            ("my-points", "release")
        );
        assert_eq!(found.target_directory, Path::new("/nowhere/target"));
    }

    #[test]
    fn a_crate_that_is_no_cdylib_is_told_what_to_add() {
        let error = read(&["rlib"], "/nowhere/points/Cargo.toml")
            .err()
            .expect("no component");
        assert!(
            error.to_string().contains("crate-type = [\"cdylib\"]"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 64);
    }

    #[test]
    fn a_workspace_is_no_crate() {
        let error = read(&["cdylib"], "/nowhere/Cargo.toml")
            .err()
            .expect("no crate");
        assert!(matches!(error, BuildError::OnlyWorkspace(_)), "{error}");
    }

    #[test]
    fn the_component_is_found_among_the_messages_of_cargo() {
        let message = |manifest: &str, file: &str| {
            json!({
                "reason": "compiler-artifact",
                "manifest_path": manifest,
                "target": { "crate_types": ["cdylib", "rlib"] },
                "filenames": ["/t/libx.rlib", file],
            })
        };
        let messages = format!(
            "{}\n{}\n{}\n",
            message("/nowhere/other/Cargo.toml", "/t/other.wasm"),
            message("/nowhere/points/Cargo.toml", "/t/my_points.wasm"),
            json!({ "reason": "build-finished", "success": true }),
        );
        let found = component(messages.as_bytes(), Path::new("/nowhere/points/Cargo.toml"));
        assert_eq!(found.as_deref(), Some(Path::new("/t/my_points.wasm")));
    }
}
