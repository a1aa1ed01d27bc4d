//! `hapax new`: a project that builds, with a test, a sample message, a table and the contract.
//!
//! Everything is in this program: the SDK and the WIT that a project gets are those of this version.

mod files;

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::output::{self, FAINT, GOOD};

use super::project::Language;

use super::{Error, print_json};
pub use files::{PYTHON_SDK, WIT};

#[derive(Debug, Args)]
pub struct NewArgs {
    /// The project's name, and the directory that is made
    name: PathBuf,
    /// The language of its handler
    #[arg(long, default_value = "rust", value_name = "LANG")]
    lang: Language,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &NewArgs) -> Result<(), Error> {
    let dir = &arguments.name;
    let name = project_name(dir)?;
    let files = files::of(arguments.lang, &name);
    make(dir, &files)?;
    let shown = dir.display().to_string();
    if arguments.json {
        let names: Vec<_> = files.iter().map(|(path, _)| path).collect();
        return print_json(&json!({ "path": shown, "name": name, "files": names }));
    }
    let steps = files::steps(arguments.lang);
    let text = format!(
        "{GOOD}{}{GOOD:#}\n{FAINT}next:{FAINT:#}\n  cd {}\n{}",
        output::clean(&shown),
        output::clean(&shown),
        steps
            .iter()
            .map(|step| format!("  {step}\n"))
            .collect::<String>()
    );
    Ok(output::print(&text)?)
}

/// The last part of the path, if it can be the name of a package, a consumer and a file in every language.
fn project_name(dir: &Path) -> Result<String, Error> {
    let name = dir
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let fits = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    // A crate of this name would hide the standard library's, or be a word of the language.
    let taken = [
        "test", "core", "std", "alloc", "hapax", "handler", "self", "crate", "fn", "mod",
    ];
    match name {
        _ if !fits => Err(Error::usage(format!(
            "`{}` cannot be a project's name: begin with a small letter, go on with small letters, digits and \
             `-`, at most 64",
            output::clean(name)
        ))),
        _ if taken.contains(&name) => Err(Error::usage(format!(
            "`{name}` means something else already; choose another name"
        ))),
        _ => Ok(name.to_owned()),
    }
}

fn make(dir: &Path, files: &[(String, String)]) -> Result<(), Error> {
    let failed = |path: &Path, error: io::Error| {
        Error::failed(format!("{} cannot be made: {error}", path.display()))
    };
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
    }
    // Never into a directory that somebody uses.
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::usage(format!(
                "{} is there already; choose another name",
                dir.display()
            )));
        }
        done => done.map_err(|error| failed(dir, error))?,
    }
    for (name, text) in files {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
