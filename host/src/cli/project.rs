//! A plugin's project on disk: its language, its configuration, and the consumer that it describes.

use std::path::{Path, PathBuf};

use crate::config::{self, Config};

use super::Error;

/// The configuration of a project, beside its sources.
pub const CONFIG: &str = "hapax.toml";

/// Languages that `hapax new` and `hapax build` know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    Rust,
    #[value(alias = "py")]
    Python,
    #[value(name = "js", alias = "javascript")]
    JavaScript,
}

impl Language {
    /// The language of the project in a directory, by the file that its toolchain reads.
    pub fn of(dir: &Path) -> Option<Self> {
        [
            ("Cargo.toml", Self::Rust),
            ("pyproject.toml", Self::Python),
            ("package.json", Self::JavaScript),
        ]
        .into_iter()
        .find(|(file, _)| dir.join(file).is_file())
        .map(|(_, language)| language)
    }
}

/// A project with one consumer that counts.
pub struct Project {
    pub config: Config,
    pub consumer: config::Consumer,
}

/// Finds a project by its directory or by its component. `file` and `consumer` are what was typed.
pub fn find(place: &Path, file: Option<&Path>, consumer: Option<&str>) -> Result<Project, Error> {
    let component = place.is_file().then(|| place.to_owned());
    let path = match file {
        Some(file) => file.to_owned(),
        None => config_of(place)?,
    };
    let mut config = config::load(&path)?;
    let mut chosen = choose(&config, component.as_deref(), consumer)?.clone();
    if let Some(component) = component {
        chosen.plugin = component;
    }
    config.consumers = vec![chosen.clone()];
    Ok(Project {
        config,
        consumer: chosen,
    })
}

fn config_of(place: &Path) -> Result<PathBuf, Error> {
    let whole = place
        .canonicalize()
        .map_err(|error| Error::usage(format!("{}: {error}", place.display())))?;
    // A component lies in a directory of its project.
    let found = whole
        .ancestors()
        .take(if whole.is_dir() { 1 } else { 5 })
        .map(|dir| dir.join(CONFIG))
        .find(|file| file.is_file());
    found.ok_or_else(|| {
        Error::usage(format!(
            "{} has no {CONFIG}, which names the consumer's key, grants and targets; write one (`hapax new` \
             shows how), or name one with --config",
            place.display()
        ))
    })
}

fn choose<'c>(
    config: &'c Config,
    component: Option<&Path>,
    name: Option<&str>,
) -> Result<&'c config::Consumer, Error> {
    let names = || {
        let names: Vec<_> = config
            .consumers
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        names.join(", ")
    };
    if let Some(name) = name {
        let found = config.consumers.iter().find(|one| one.name == name);
        return found.ok_or_else(|| {
            Error::usage(format!(
                "{} has no consumer {name}; there is: {}",
                config.path.display(),
                names()
            ))
        });
    }
    let same = |one: &&config::Consumer| {
        let real = |path: &Path| path.canonicalize().ok();
        component.is_some_and(|component| real(component) == real(&one.plugin))
    };
    match (
        config.consumers.as_slice(),
        config.consumers.iter().find(same),
    ) {
        (_, Some(found)) => Ok(found),
        ([only], None) => Ok(only),
        ([], None) => Err(Error::usage(format!(
            "{} has no [[consumer]]",
            config.path.display()
        ))),
        _ => Err(Error::usage(format!(
            "{} has several consumers; name one with --consumer: {}",
            config.path.display(),
            names()
        ))),
    }
}
