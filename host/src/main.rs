//! arguments → configuration → telemetry → command → exit code

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hapax::cli::{self, Arguments, Error};
use hapax::{config, failpoint, sandbox, telemetry};
use tokio::runtime::Runtime;

/// What a message needs is freed on another thread than it was made on, and in another order: the system's allocator
/// spends a sixth of the host's time on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long tasks that nobody waits for have to let go of what they hold.
const LEAVING: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // This program is also the process that reads what plugins bring of debug information.
    if let Some(code) = sandbox::read_debug_information_if_asked() {
        return code;
    }
    if let Err(order) = failpoint::arm() {
        return Error::usage(order.to_string()).report();
    }
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(usage) => return usage.report(),
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return Error::failed(format!("no threads: {error}")).report(),
    };
    let code = runtime
        .block_on(run(arguments))
        .unwrap_or_else(|error| error.report());
    // A component that is being compiled keeps its thread for many seconds, and a host that leaves has no use
    // for it any more: it ends with the process.
    runtime.shutdown_timeout(LEAVING);
    code
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
