//! `hapax ledger`: what became of a key, and what the ledger shall remember.

mod forget;
mod import;
mod list;
mod records;
mod show;

use std::sync::Arc;

use clap::Subcommand;

use crate::config::Config;

use super::Error;

#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Tell the whole fate of a key
    Show(show::ShowArgs),
    /// List keys, in their order
    List(list::ListArgs),
    /// Forget keys, so that their messages are new again: they would be applied a second time
    Forget(forget::ForgetArgs),
    /// Take over keys that another consumer has handled, as committed
    Import(import::ImportArgs),
}

pub async fn run(command: LedgerCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        LedgerCommand::Show(arguments) => show::run(&arguments, &config).await,
        LedgerCommand::List(arguments) => list::run(&arguments, &config).await,
        LedgerCommand::Forget(arguments) => forget::run(&arguments, &config).await,
        LedgerCommand::Import(arguments) => import::run(&arguments, &config).await,
    }
}

/// The consumer that was named, or the only one there is.
fn consumer(named: Option<&str>, config: &Config) -> Result<String, Error> {
    match (named, config.consumers.as_slice()) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, [only]) => Ok(only.name.clone()),
        (None, all) => {
            let names = all.iter().map(|consumer| consumer.name.as_str());
            Err(Error::usage(format!(
                "--consumer is missing: keys belong to a consumer, and there is {}",
                names.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}

/// A key from its hexadecimal digits, for people: text where it is text.
fn shown(key_hex: &str) -> String {
    crate::output::bytes(&hex::decode(key_hex).unwrap_or_default())
}
