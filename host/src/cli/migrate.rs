//! `hapax migrate`: the tables of the store.

use clap::Args;
use serde_json::json;

use crate::config::{Config, StoreKind};
use crate::host::{StartError, open_store};
use crate::output;
use crate::store::{Dialect, migrate};

use super::{Error, print_json};

#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Print all migrations as SQL, and change nothing
    #[arg(long, conflicts_with = "status")]
    print: bool,
    /// Say what is missing, and change nothing
    #[arg(long)]
    status: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

pub async fn run(arguments: &MigrateArgs, config: &Config) -> Result<(), Error> {
    if arguments.print {
        let dialect = match config.store.kind {
            StoreKind::Sqlite { .. } => Dialect::Sqlite,
            StoreKind::Postgres { .. } => Dialect::Postgres,
        };
        return Ok(output::print(&migrate::sql(dialect, &config.store.schema))?);
    }
    let name = config.store.kind.to_string();
    let failed = |error| StartError::Store {
        store: name.clone(),
        error,
    };
    let store = open_store(config)?;
    let (names, what) = if arguments.status {
        (store.pending_migrations().await.map_err(failed)?, "pending")
    } else {
        (store.migrate().await.map_err(failed)?, "applied")
    };
    if arguments.json {
        return print_json(&json!({ "store": name, what: names }));
    }
    let text = match names.as_slice() {
        [] => format!("{name} is up to date\n"),
        names => names
            .iter()
            .map(|name| format!("{what} {name}\n"))
            .collect(),
    };
    Ok(output::print(&text)?)
}
