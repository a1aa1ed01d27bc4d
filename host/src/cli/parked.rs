//! `hapax parked`: failed messages, as their operator sees them.

mod change;
mod edit;
mod list;
mod show;

use std::sync::Arc;

use clap::Subcommand;

use crate::config::Config;

use super::Error;

pub(super) use show::content;

#[derive(Debug, Subcommand)]
pub enum ParkedCommand {
    /// List parked messages, the newest failure first
    List(list::ListArgs),
    /// Show one failed message whole
    Show(show::ShowArgs),
    /// Run parked messages again, from their first attempt; what was committed meanwhile is recognised
    Replay(change::ReplayArgs),
    /// Give parked messages up; their keys are remembered as discarded
    Discard(change::DiscardArgs),
}

pub async fn run(command: ParkedCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        ParkedCommand::List(arguments) => list::run(&arguments, &config).await,
        ParkedCommand::Show(arguments) => show::run(&arguments, &config).await,
        ParkedCommand::Replay(arguments) => change::replay(&arguments, &config).await,
        ParkedCommand::Discard(arguments) => change::discard(&arguments, &config).await,
    }
}
