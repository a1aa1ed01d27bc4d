//! `hapax run`: the daemon, from its start to the end of its drain.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::descriptors;
use crate::host::{Exit, Host};

use super::Error;

/// How long a host that leaves at once may take to roll back: a message that it drops was not its end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT, and drains. A second signal ends the process at once: nothing is lost by
/// it, what was not acknowledged comes again.
pub async fn run(config: Arc<Config>) -> Result<ExitCode, Error> {
    descriptors::raise();
    let mut signals = Signals::listen()
        .map_err(|error| Error::failed(format!("signals cannot be listened to: {error}")))?;
    let start = Host::start(config);
    let host = tokio::select! {
        host = start => host?,
        // Nothing is consumed yet: there is nothing to drain.
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let hurry = CancellationToken::new();
    let second = hurry.clone();
    let stop = async move {
        signals.next().await;
        tokio::spawn(async move {
            signals.next().await;
            tracing::warn!("Leaving at once; what is not acknowledged comes again");
            second.cancel();
            tokio::time::sleep(LEAVE_PATIENCE).await;
            std::process::exit(1);
        });
    };
    match host.run_until(stop, hurry.cancelled()).await {
        Exit::Drained => Ok(ExitCode::SUCCESS),
        Exit::TimedOut => Ok(ExitCode::FAILURE),
    }
}

#[cfg(unix)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next request to stop.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
pub struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    /// The next request to stop.
    pub async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
