//! The process tests: the real binary against real servers, one module per kind of trouble.
//!
//! They are one binary with a `main` of its own, so that the private servers start once, when
//! the first selected test asks for them, and stop when the last one is done.

mod exactly_once;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use support::place::{self, Place};
use support::servers;

/// What a test returns. A failed assertion may also panic.
type Checked = anyhow::Result<()>;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a runtime can be made at the start"));

/// Names each test after its module and function.
macro_rules! trials {
    ($($module:ident: [$($test:ident),* $(,)?]),* $(,)?) => {
        vec![$($(
            trial(
                concat!(stringify!($module), "::", stringify!($test)),
                |place| RUNTIME.block_on($module::$test(place)),
            ),
        )*)*]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = trials![
        exactly_once: [
            six_sigkills_lose_and_double_nothing_on_postgres,
            six_sigkills_lose_and_double_nothing_on_sqlite,
            two_hosts_on_one_queue_are_killed_in_turn,
        ],
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        eprintln!("{}", servers::log_tails());
        eprintln!("logs and data: {}", place::root().display());
    }
    servers::stop_shared();
    if !conclusion.has_failed() {
        place::remove_root();
    }
    conclusion.exit_code()
}

fn trial(name: &'static str, test: fn(&Place) -> Checked) -> Trial {
    Trial::test(name, move || {
        let place = Place::of(name).map_err(|error| format!("{error:#}"))?;
        let complaint = match catch_unwind(AssertUnwindSafe(|| test(&place))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => message(panic.as_ref()),
        };
        Err(Failed::from(complaint + &place.evidence()))
    })
}

/// The text of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
        .to_owned()
}
