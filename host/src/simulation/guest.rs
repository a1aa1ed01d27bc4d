//! The handler of the simulation: its message says in five letters what it does.
//!
//! `o` is done, `f` fails until the attempt after the digit that follows, `x` is rejected; the third letter
//! says whether the row is inserted now (`e`) or before the commit (`d`), the fourth is the ordering key of
//! the message it sends (`-`: none), and with `r` as the fifth it answers whoever asks. It writes, sends and
//! answers before it fails, so that there is something to undo.

use std::sync::{Arc, LazyLock};

use crate::plugins::PluginFile;
use crate::sandbox::{Plugin, Sandbox, SandboxOptions, tests::component};

pub static PLUGIN: LazyLock<Arc<PluginFile>> = LazyLock::new(|| {
    let options = SandboxOptions {
        // No schedule waits for another one's: it would be another schedule then.
        concurrent_instances: 64,
        max_memory: 16 << 20,
        max_table_elements: 10_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    };
    let sandbox = Sandbox::new(options).expect("the engine starts");
    let plugin = Plugin::from_bytes(&sandbox, "simulation.wasm", &handler());
    // Its ticks come in real time: a guest that is interrupted makes room for others, now here, now there.
    sandbox.stop_clock();
    PluginFile::fixed(&sandbox, plugin.expect("the component loads"))
});

/// The one statement that it runs.
pub const INSERT_ONE: &str = "INSERT INTO t_effects (id) VALUES ($1)";

/// The sandbox's own tests need the addresses: a result at 1024, the body's at 168 of the envelope.
fn handler() -> Vec<u8> {
    let insert = INSERT_ONE;
    let length = insert.len();
    component::guest(
        &format!(
            r#"(import "hapax:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))
               (import "hapax:plugin/sql@0.1.0" "defer" (func $defer (param i32 i32 i32 i32)))
               (import "hapax:plugin/context@0.1.0" "attempt" (func $attempt (result i32)))
               (import "hapax:plugin/outbox@0.1.0" "publish" (func $publish (param i32 i32)))
               (import "hapax:plugin/outbox@0.1.0" "reply" (func $reply (param i32 i32 i32 i32 i32 i32)))
               (data (i32.const 2048) {insert:?})
               (data (i32.const 2200) "out")"#
        ),
        &format!(
            "(local $body i32) (local $length i32)
             (local.set $body (i32.load offset=168 (local.get $envelope)))
             (local.set $length (i32.load offset=172 (local.get $envelope)))
             ;; a list of one value: text
             (i32.store8 (i32.const 2304) (i32.const 4))
             (i32.store (i32.const 2312) (local.get $body))
             (i32.store (i32.const 2316) (local.get $length))
             (if (i32.eq (i32.load8_u offset=2 (local.get $body)) (i32.const 101))
               (then (call $execute (i32.const 2048) (i32.const {length}) (i32.const 2304) (i32.const 1)
                       (i32.const 3600)))
               (else (call $defer (i32.const 2048) (i32.const {length}) (i32.const 2304) (i32.const 1))))
             ;; the outgoing message: target, body, ordering key
             (i32.store (i32.const 3072) (i32.const 2200))
             (i32.store (i32.const 3076) (i32.const 3))
             (i32.store (i32.const 3092) (local.get $body))
             (i32.store (i32.const 3096) (local.get $length))
             (if (i32.ne (i32.load8_u offset=3 (local.get $body)) (i32.const 45))
               (then
                 (i32.store8 (i32.const 3120) (i32.const 1))
                 (i32.store (i32.const 3124) (i32.add (local.get $body) (i32.const 3)))
                 (i32.store (i32.const 3128) (i32.const 1))))
             (call $publish (i32.const 3072) (i32.const 3400))
             (if (i32.load8_u (i32.const 3400)) (then unreachable))
             ;; the answer is the body; without anybody who asks it is refused, and that is all
             (if (i32.eq (i32.load8_u offset=4 (local.get $body)) (i32.const 114))
               (then (call $reply (local.get $body) (local.get $length) (i32.const 0) (i32.const 0)
                       (i32.const 0) (i32.const 3500))))
             ;; rejected: an err with the second case
             (if (i32.eq (i32.load8_u (local.get $body)) (i32.const 120))
               (then
                 (i32.store8 (i32.const 1024) (i32.const 1))
                 (i32.store8 (i32.const 1032) (i32.const 1))))
             ;; fails while the attempt is not over the digit: an err with the first case
             (if (i32.eq (i32.load8_u (local.get $body)) (i32.const 102))
               (then
                 (if (i32.le_u (call $attempt)
                       (i32.sub (i32.load8_u offset=1 (local.get $body)) (i32.const 48)))
                   (then (i32.store8 (i32.const 1024) (i32.const 1))))))
             (i32.const 1024)"
        ),
    )
}
