//! A guest shares its thread with the messages of other consumers. Each test runs on one thread, and counts how
//! often others had their turn there; none measures time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::component::guest;
use super::*;

/// Interrupts no guest: a turn that others have there is one that a detour has given them.
static STILL: LazyLock<Arc<Sandbox>> = LazyLock::new(|| {
    let sandbox = sandbox();
    sandbox.stop_clock();
    sandbox
});

/// What is done on another thread may be done before this one looks, which then has nothing to wait for.
const ATTEMPTS: u32 = 1_000;

/// Runs a component while something else wants the same thread, and returns how often that had it.
async fn turns_during(environment: &Arc<Environment>, plugin: &Plugin) -> (Run, u32) {
    let run = plugin.run(environment, attempt("key"), transaction().0);
    let mut turns = 0_u32;
    let others = async {
        loop {
            turns += 1;
            tokio::task::yield_now().await;
        }
    };
    let run = tokio::select! {
        biased;
        run = run => run,
        () = others => unreachable!("it loops"),
    };
    (run, turns)
}

/// Runs a component until others had a turn meanwhile, which they never have where it keeps its thread.
async fn is_left(component: &[u8]) -> Run {
    let plugin = load_into(&STILL, component);
    let environment = Arc::new(environment());
    for _ in 0..ATTEMPTS {
        // A task that has gone on for long is made to wait, whatever it does: each run begins anew.
        tokio::task::yield_now().await;
        let (run, turns) = turns_during(&environment, &plugin).await;
        if turns > 0 {
            return run;
        }
    }
    panic!("{ATTEMPTS} runs have kept their thread");
}

/// 200 epochs. However busy the machine is, a guest is charged with 16 at once at most, and yields each time.
fn short_of_time() -> Environment {
    let mut environment = environment();
    environment.limits.cpu = Duration::from_millis(200);
    environment
}

const SPIN: &str = "(loop $l (br $l)) unreachable";

#[tokio::test(flavor = "current_thread")]
async fn a_spinning_handler_lets_others_run() {
    let plugin = load(&guest("", SPIN));
    let (run, turns) = turns_during(&Arc::new(short_of_time()), &plugin).await;
    assert_eq!(failure(run).code, code::CPU_LIMIT);
    assert!(turns >= 12, "{turns} turns in 200 epochs");
}

/// Executors look at sockets only now and then while tasks are ready, and a guest that spins always is.
#[cfg(unix)]
#[tokio::test(flavor = "current_thread")]
async fn a_spinning_handler_lets_the_executor_look_at_its_sockets() {
    let (mut here, mut there) = tokio::net::UnixStream::pair().expect("two sockets");
    tokio::spawn(async move {
        while let Ok(byte) = there.read_u8().await {
            there.write_u8(byte).await.expect("somebody listens");
        }
    });
    let plugin = load(&guest("", SPIN));
    let environment = Arc::new(short_of_time());
    let spinning = plugin.run(&environment, attempt("key"), transaction().0);
    let mut answers = 0_u32;
    let talking = async {
        loop {
            here.write_u8(1).await.expect("somebody listens");
            here.read_u8().await.expect("somebody answers");
            answers += 1;
        }
    };
    tokio::select! {
        biased;
        run = spinning => assert_eq!(failure(run).code, code::CPU_LIMIT),
        () = talking => unreachable!("it loops"),
    }
    // Each way takes a look at the sockets, of which there are twelve at least.
    assert!(answers >= 4, "{answers} answers in 200 epochs");
}

/// The debug information is damaged, which is found out when it is read.
#[tokio::test(flavor = "current_thread")]
async fn debug_information_is_read_elsewhere() {
    let component = guest(
        r#"(@custom ".debug_info" "\00\01\02")
           (@custom ".debug_line" "\ff\ff\ff\7f\00")"#,
        "unreachable",
    );
    assert!(
        failure(is_left(&component).await)
            .backtrace
            .contains("handle")
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_statement_is_judged_elsewhere() {
    let data = "SELECT * FROM hapax_ledger";
    let component = guest(
        &format!(
            r#"(import "hapax:plugin/sql@0.1.0" "defer" (func $defer (param i32 i32 i32 i32)))
               (data (i32.const 2048) "{data}")"#
        ),
        &format!(
            "(call $defer (i32.const 2048) (i32.const {}) (i32.const 0) (i32.const 0)) (i32.const 1024)",
            data.len()
        ),
    );
    // Refusals are not remembered: it is new in each run.
    assert_eq!(failure(is_left(&component).await).code, code::SQL_REFUSED);
}

#[tokio::test(flavor = "current_thread")]
async fn a_large_memory_is_given_back_elsewhere() {
    let grow = |pages: u32| {
        guest(
            "",
            &format!("(drop (memory.grow (i32.const {pages}))) (i32.const 1024)"),
        )
    };
    let run = is_left(&grow(512)).await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    assert!(run.transaction.is_some());

    let small = load_into(&STILL, &grow(1));
    let (_, turns) = turns_during(&Arc::new(environment()), &small).await;
    assert_eq!(turns, 0, "what is small takes no detour");
}

/// The epochs of a wait are nobody's, however many there are.
#[tokio::test(flavor = "current_thread")]
async fn waiting_takes_no_processor_time() {
    let mut environment = environment();
    environment.limits.cpu = Duration::from_millis(100);
    let (transaction, _) = slow_transaction();
    let plugin = load(&running::statement("DELETE FROM t_rows", 60));
    let run = plugin
        .run(&Arc::new(environment), attempt("key"), transaction)
        .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
}
