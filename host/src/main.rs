//! arguments → configuration → telemetry → command → exit code

use std::process::ExitCode;
use std::sync::Arc;

use hapax::cli::{self, Arguments, Error};
use hapax::{config, failpoint, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(order) = failpoint::arm() {
        return Error::usage(order.to_string()).report();
    }
    match Arguments::read(std::env::args_os()) {
        Ok(arguments) => run(arguments).await.unwrap_or_else(|error| error.report()),
        Err(usage) => usage.report(),
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let Arguments { command, config } = arguments;
    if !command.needs_config() {
        // A host that is started without the daemon's configuration sets its log up itself.
        if !command.is_daemon() {
            telemetry::quiet();
        }
        return command.run_alone(config).await;
    }
    let config = config::load(&config::find(config.as_deref())?)?;
    if command.is_daemon() {
        telemetry::start(&config.log)?;
    } else {
        telemetry::quiet();
    }
    cli::run(command, Arc::new(config)).await
}
