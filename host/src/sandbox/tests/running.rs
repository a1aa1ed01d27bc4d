//! How runs end: well, by the handler's own word, by a trap, by a limit, or with the database.

use std::time::Duration;

use super::component::guest;
use super::*;

const NOW: &str = r#"(import "hapax:plugin/context@0.1.0" "now" (func $now (result i64)))"#;

const EXECUTE: &str =
    r#"(import "hapax:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))"#;

const DEFER: &str =
    r#"(import "hapax:plugin/sql@0.1.0" "defer" (func $defer (param i32 i32 i32 i32)))"#;

const PUBLISH: &str =
    r#"(import "hapax:plugin/outbox@0.1.0" "publish" (func $publish (param i32 i32)))"#;

/// Text at 2048, of the length that comes with it.
fn data(text: &str) -> (String, usize) {
    (format!("(data (i32.const 2048) {text:?})"), text.len())
}

/// A handler that runs one statement `times` times, and is done whatever a constraint says.
pub fn statement(text: &str, times: u32) -> Vec<u8> {
    let (data, length) = data(text);
    guest(
        &format!("{EXECUTE}\n{data}"),
        &format!(
            "(local $n i32)
             (loop $again
               (call $execute (i32.const 2048) (i32.const {length}) (i32.const 0) (i32.const 0) (i32.const 3072))
               (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $n) (i32.const {times}))))
             (i32.const 1024)"
        ),
    )
}

/// A handler that publishes `body` (code that leaves an address and a length) to the target `events`.
pub fn publisher(declarations: &str, body: &str, times: u32) -> Vec<u8> {
    let (data, length) = data("events");
    guest(
        &format!("{PUBLISH}\n{declarations}\n{data}"),
        // The record at 3072: the target at 0, the body at 20; everything else is absent.
        &format!(
            "(local $n i32) (local $at i32) (local $length i32)
             {body} (local.set $length) (local.set $at)
             (i32.store (i32.const 3072) (i32.const 2048))
             (i32.store (i32.const 3076) (i32.const {length}))
             (i32.store (i32.const 3092) (local.get $at))
             (i32.store (i32.const 3096) (local.get $length))
             (loop $again
               (call $publish (i32.const 3072) (i32.const 3200))
               (if (i32.load8_u (i32.const 3200)) (then unreachable))
               (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $n) (i32.const {times}))))
             (i32.const 1024)"
        ),
    )
}

#[tokio::test]
async fn a_handler_that_returns_done_is_done() {
    let run = run(&guest("", "(i32.const 1024)")).await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    assert!(run.transaction.is_some());
}

#[tokio::test]
async fn a_rejection_keeps_its_reason_and_is_final() {
    let (data, length) = data("no such user");
    // result: err at 0; failure: reject at 8; its text at 16.
    let failure = failure(
        run(&guest(
            &data,
            &format!(
                "(i32.store8 (i32.const 1024) (i32.const 1))
                 (i32.store8 (i32.const 1032) (i32.const 1))
                 (i32.store (i32.const 1040) (i32.const 2048))
                 (i32.store (i32.const 1044) (i32.const {length}))
                 (i32.const 1024)"
            ),
        ))
        .await,
    );
    assert_eq!(
        (failure.code, failure.again),
        (code::REJECTED, Again::Never)
    );
    assert_eq!(failure.message, "no such user");
}

#[tokio::test]
async fn a_retry_carries_the_delay_that_the_handler_asked_for() {
    // failure: retry at 8; its reason at 16 is empty; `after` at 24 with its value at 32.
    let failure = failure(
        run(&guest(
            "",
            "(i32.store8 (i32.const 1024) (i32.const 1))
             (i32.store8 (i32.const 1048) (i32.const 1))
             (i64.store (i32.const 1056) (i64.const 1500))
             (i32.const 1024)",
        ))
        .await,
    );
    assert_eq!(failure.code, code::RETRY);
    assert_eq!(
        failure.again,
        Again::Later(Some(Duration::from_millis(1500)))
    );
}

#[tokio::test]
async fn a_trap_names_the_function_it_happened_in() {
    let failure = failure(
        run(&guest(
            "(func $divide unreachable)",
            "(call $divide) (i32.const 1024)",
        ))
        .await,
    );
    assert_eq!(
        (failure.code, failure.again),
        (code::TRAP, Again::Later(None))
    );
    assert_eq!(failure.message, "the handler aborted");
    let mut frames = failure.backtrace.lines();
    assert!(
        frames.next().is_some_and(|frame| frame.contains("divide")),
        "{}",
        failure.backtrace
    );
    assert!(
        frames.next().is_some_and(|frame| frame.contains("handle")),
        "{}",
        failure.backtrace
    );
    assert!(
        !failure.backtrace.contains("wasmtime"),
        "{}",
        failure.backtrace
    );
}

#[tokio::test]
async fn a_trap_tells_what_was_wrong() {
    let body = "(i32.load (i32.const -4))";
    let failure = failure(run(&guest("", body)).await);
    assert_eq!(failure.message, "out of bounds memory access");
}

#[tokio::test]
async fn a_panic_is_told_in_its_own_words() {
    let panic = "thread 'main' (1) panicked at src/lib.rs:9:41:\nno such user\nnote: run with `RUST_BACKTRACE=1`\n";
    let (data, length) = data(panic);
    let failure = failure(
        run(&guest(
            &format!(
                r#"(import "wasi:cli/stderr@0.2.6" "get-stderr" (func $stderr (result i32)))
                   (import "wasi:io/streams@0.2.6" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
                   {data}"#
            ),
            &format!(
                "(call $write (call $stderr) (i32.const 2048) (i32.const {length}) (i32.const 3072)) unreachable"
            ),
        ))
        .await,
    );
    assert_eq!(failure.message, "panicked at src/lib.rs:9:41: no such user");
    assert_eq!(failure.stderr, panic);
}

#[tokio::test]
async fn a_flood_on_stderr_is_cut_and_counted() {
    let mut environment = environment();
    environment.limits.log_bytes = 100;
    let run = run_in(
        environment,
        &guest(
            r#"(import "wasi:cli/stderr@0.2.6" "get-stderr" (func $stderr (result i32)))
               (import "wasi:io/streams@0.2.6" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
               (data (i32.const 4096) "x")"#,
            "(call $write (call $stderr) (i32.const 4096) (i32.const 1000) (i32.const 3072)) (i32.const 1024)",
        ),
    )
    .await;
    assert!(matches!(run.verdict, Verdict::Done));
    assert!(
        run.output.ends_with("[900 more bytes dropped]"),
        "{}",
        run.output
    );
    assert!(!run.output.contains('\0'));
}

#[tokio::test]
async fn exiting_is_not_returning() {
    let failure = failure(
        run(&guest(
            r#"(import "wasi:cli/exit@0.2.6" "exit" (func $exit (param i32)))"#,
            "(call $exit (i32.const 0)) unreachable",
        ))
        .await,
    );
    assert_eq!(failure.code, code::TRAP);
    assert!(
        failure.message.contains("exited with status 0"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn recursion_without_end_is_a_trap() {
    let failure = failure(
        run(&guest(
            "(func $deeper (call $deeper))",
            "(call $deeper) (i32.const 1024)",
        ))
        .await,
    );
    assert_eq!(failure.code, code::TRAP);
    assert!(
        failure.message.contains("call stack exhausted"),
        "{}",
        failure.message
    );
}

/// Aborts when there is a variable, a directory, or a socket to be had.
#[tokio::test]
async fn there_is_no_environment_no_directory_and_no_network() {
    let run = run(&guest(
        r#"(import "wasi:cli/environment@0.2.6" "get-environment" (func $variables (param i32)))
           (import "wasi:filesystem/preopens@0.2.6" "get-directories" (func $directories (param i32)))
           (import "wasi:sockets/tcp-create-socket@0.2.6" "create-tcp-socket" (func $tcp (param i32 i32)))
           (import "wasi:sockets/udp-create-socket@0.2.6" "create-udp-socket" (func $udp (param i32 i32)))"#,
        // A list is an address and a length; a result is 0 or 1, and then error 1 is `access-denied`.
        "(call $variables (i32.const 3072))
         (if (i32.load (i32.const 3076)) (then unreachable))
         (call $directories (i32.const 3072))
         (if (i32.load (i32.const 3076)) (then unreachable))
         (call $tcp (i32.const 0) (i32.const 3072))
         (if (i32.ne (i32.load8_u (i32.const 3072)) (i32.const 1)) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.const 3076)) (i32.const 1)) (then unreachable))
         (call $udp (i32.const 0) (i32.const 3072))
         (if (i32.ne (i32.load8_u (i32.const 3072)) (i32.const 1)) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.const 3076)) (i32.const 1)) (then unreachable))
         (i32.const 1024)",
    ))
    .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
}

fn short_of_time() -> Environment {
    let mut environment = environment();
    environment.limits.cpu = Duration::from_millis(20);
    environment
}

#[tokio::test]
async fn a_spinning_handler_meets_the_cpu_limit() {
    let run = run_in(short_of_time(), &guest("", "(loop $l (br $l)) unreachable")).await;
    assert!(run.transaction.is_some());
    let failure = failure(run);
    assert_eq!(failure.code, code::CPU_LIMIT);
    assert!(failure.message.contains("20ms"), "{}", failure.message);
    assert!(
        failure.backtrace.contains("handle"),
        "{}",
        failure.backtrace
    );
}

#[tokio::test]
async fn spinning_through_host_calls_meets_the_cpu_limit() {
    let body = "(loop $l (drop (call $now)) (br $l)) unreachable";
    assert_eq!(
        failure(run_in(short_of_time(), &guest(NOW, body)).await).code,
        code::CPU_LIMIT
    );
}

#[tokio::test]
async fn a_handler_that_is_out_of_time_loses_no_transaction() {
    let mut environment = environment();
    environment.limits.cpu = Duration::from_secs(60);
    environment.limits.wall = Duration::from_millis(20);
    let run = run_in(environment, &guest("", "(loop $l (br $l)) unreachable")).await;
    assert!(run.transaction.is_some());
    assert_eq!(failure(run).code, code::WALL_LIMIT);
}

/// The clock is stopped, and goes on when nothing else can.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_left_waiting_goes_with_the_handler() {
    let environment = environment();
    // Judged beforehand: that is done on another thread, for which a stopped clock does not wait.
    environment
        .rules
        .check("DELETE FROM t_slow")
        .expect("it is allowed");
    let run = run_in(environment, &statement("DELETE FROM t_slow", 1)).await;
    assert!(run.transaction.is_none());
    assert_eq!(failure(run).code, code::WALL_LIMIT);
}

#[tokio::test]
async fn a_memory_bomb_meets_the_memory_limit() {
    let mut environment = environment();
    environment.limits.memory = 4 * MIB;
    let body = "(loop $l (drop (memory.grow (i32.const 16))) (br $l)) unreachable";
    let failure = failure(run_in(environment, &guest("", body)).await);
    assert_eq!(failure.code, code::MEMORY_LIMIT);
    assert!(
        failure.message.contains("limits.memory allows 4194304"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn a_table_bomb_meets_the_memory_limit() {
    let body =
        "(loop $l (drop (table.grow $t (ref.null func) (i32.const 10000))) (br $l)) unreachable";
    let failure = failure(run(&guest("(table $t 1 funcref)", body)).await);
    assert_eq!(failure.code, code::MEMORY_LIMIT);
    assert!(
        failure.message.contains("limits.table-elements"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn passing_too_much_at_once_meets_the_hostcall_limit() {
    let mut environment = environment();
    environment.limits.hostcall_bytes = 64 * 1024;
    let run = run_in(
        environment,
        &guest(
            r#"(import "hapax:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))"#,
            "(call $log (i32.const 2) (i32.const 0) (i32.const 100000) (i32.const 0) (i32.const 0)) (i32.const 1024)",
        ),
    )
    .await;
    assert_eq!(failure(run).code, code::HOSTCALL_LIMIT);
}

#[tokio::test]
async fn a_talkative_handler_is_no_failure() {
    let run = run(&guest(
        r#"(import "hapax:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))"#,
        "(local $n i32)
         (loop $again
           (call $log (i32.const 2) (i32.const 2048) (i32.const 4096) (i32.const 0) (i32.const 0))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $again (i32.lt_u (local.get $n) (i32.const 5000))))
         (i32.const 1024)",
    ))
    .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
}

#[tokio::test]
async fn a_statement_runs_in_the_transaction() {
    let plugin = load(&statement("INSERT INTO t_rows (n) VALUES (1)", 2));
    let (transaction, journal) = transaction();
    let run = plugin
        .run(&Arc::new(environment()), attempt("key"), transaction)
        .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    assert_eq!(
        *journal.lock().expect("nobody panicked"),
        ["INSERT INTO t_rows (n) VALUES (1)"; 2]
    );
}

#[tokio::test]
async fn a_deferred_statement_is_only_collected() {
    let (data, length) = data("INSERT INTO t_rows (n) VALUES (1)");
    let plugin = load(&guest(
        &format!("{DEFER}\n{data}"),
        &format!(
            "(call $defer (i32.const 2048) (i32.const {length}) (i32.const 0) (i32.const 0)) (i32.const 1024)"
        ),
    ));
    let (transaction, journal) = transaction();
    let run = plugin
        .run(&Arc::new(environment()), attempt("key"), transaction)
        .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    assert_eq!(run.effects.deferred.len(), 1);
    assert!(journal.lock().expect("nobody panicked").is_empty());
}

#[tokio::test]
async fn a_refused_statement_fails_the_message_for_good() {
    for sql in [
        "SELECT * FROM hapax_ledger",
        "COMMIT",
        "DELETE FROM t_of_another_consumer",
    ] {
        let failure = failure(run(&statement(sql, 1)).await);
        assert_eq!(
            (failure.code, failure.again),
            (code::SQL_REFUSED, Again::Never),
            "{sql}"
        );
        assert!(!failure.message.is_empty());
    }
}

#[tokio::test]
async fn a_constraint_is_the_handlers_to_see() {
    let (data, length) = data("INSERT INTO t_taken (n) VALUES (1)");
    // Aborts unless the result is an error, and its kind `unique`.
    let run = run(&guest(
        &format!("{EXECUTE}\n{data}"),
        &format!(
            "(call $execute (i32.const 2048) (i32.const {length}) (i32.const 0) (i32.const 0) (i32.const 3072))
             (if (i32.ne (i32.load8_u (i32.const 3072)) (i32.const 1)) (then unreachable))
             (if (i32.ne (i32.load8_u (i32.const 3080)) (i32.const 0)) (then unreachable))
             (i32.const 1024)"
        ),
    ))
    .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
}

#[tokio::test]
async fn a_message_sees_its_own_state_and_writes_only_the_last_of_it() {
    let run = run(&guest(
        r#"(import "hapax:plugin/state@0.1.0" "get" (func $get (param i32 i32 i32)))
           (import "hapax:plugin/state@0.1.0" "put" (func $put (param i32 i32 i32 i32)))
           (data (i32.const 2048) "key12")"#,
        // An entry is 0 or 1, and then at 8 the address and the length of its value.
        "(call $get (i32.const 2048) (i32.const 3) (i32.const 3072))
         (if (i32.load8_u (i32.const 3072)) (then unreachable))
         (call $put (i32.const 2048) (i32.const 3) (i32.const 2051) (i32.const 1))
         (call $put (i32.const 2048) (i32.const 3) (i32.const 2052) (i32.const 1))
         (call $get (i32.const 2048) (i32.const 3) (i32.const 3072))
         (if (i32.ne (i32.load8_u (i32.load (i32.const 3080))) (i32.const 0x32)) (then unreachable))
         (i32.const 1024)",
    ))
    .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    let [write] = &run.effects.state[..] else {
        panic!("one write: {:?}", run.effects.state)
    };
    assert_eq!(
        (write.key.as_str(), write.value.as_deref()),
        ("key", Some(&b"2"[..]))
    );
    assert_eq!(write.expect, crate::store::Expect::Absent);
}

#[tokio::test]
async fn a_lost_transaction_is_not_the_messages_failure() {
    let run = run(&statement("DELETE FROM t_lost", 1)).await;
    assert!(
        matches!(
            run.verdict,
            Verdict::Spoiled(StoreError::TransactionLost(_))
        ),
        "{:?}",
        run.verdict
    );
    assert!(run.transaction.is_some());
}

#[tokio::test]
async fn too_many_statements_meet_the_sql_limit() {
    let failure = failure(run(&statement("DELETE FROM t_rows", 10_000)).await);
    assert_eq!(failure.code, code::SQL_LIMIT);
    assert!(
        failure.message.contains("limits.sql-statements"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn an_outbox_flood_meets_the_outbox_limit() {
    let flood = publisher("", "(i32.const 2048) (i32.const 4)", 10_000);
    let run = run(&flood).await;
    assert!(run.effects.outbox.is_empty());
    assert_eq!(failure(run).code, code::OUTBOX_LIMIT);
}

#[tokio::test]
async fn more_runs_than_instances_wait_for_each_other() {
    let options = SandboxOptions {
        concurrent_instances: 1,
        max_memory: MIB,
        max_table_elements: 1_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    };
    let sandbox = Sandbox::new(options).expect("the engine starts");
    let component = statement("DELETE FROM t_rows", 100);
    let plugin = Plugin::from_bytes(&sandbox, "test.wasm", &component).expect("it loads");
    let environment = Arc::new(environment());
    let runs = (0..50).map(|_| plugin.run(&environment, attempt("key"), transaction().0));
    for run in futures_util::future::join_all(runs).await {
        assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    }
}

#[tokio::test]
async fn without_room_for_a_pool_instances_are_made_on_demand() {
    // More than the address space of any machine of today.
    let options = SandboxOptions {
        concurrent_instances: 1_000_000,
        max_memory: 64 * MIB,
        max_table_elements: 100_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    };
    let sandbox = Sandbox::new(options).expect("the engine starts");
    let component = guest("", "(i32.const 1024)");
    let plugin = Plugin::from_bytes(&sandbox, "test.wasm", &component).expect("it loads");
    let run = plugin
        .run(&Arc::new(environment()), attempt("key"), transaction().0)
        .await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
}
