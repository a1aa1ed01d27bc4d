//! Versions of a plugin that differ in what they do: each writes its own number beside the order.

use std::path::Path;

use anyhow::Context;

// The builder of the sandbox's own tests: a module in the text format, joined with the real WIT.
#[path = "../../../host/src/sandbox/tests/component.rs"]
mod component;

pub use component::guest;

/// A component that inserts (order id, `number`) into `t_effects`, at once. The order id is the key.
pub fn version(number: i64) -> Vec<u8> {
    const STATEMENT: &str = "INSERT INTO t_effects (order_id, step) VALUES ($1, $2)";
    let declarations = format!(
        r#"(import "hapax:plugin/context@0.1.0" "key" (func $key (param i32)))
           (import "hapax:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))
           (data (i32.const 3072) "{STATEMENT}")"#
    );
    // The key's bytes are at what 4096 and 4100 say. At 4200 stand two values of 24 bytes each: a text
    // (case 4) and an integer (case 2), their payloads 8 bytes in.
    let body = format!(
        "(call $key (i32.const 4096))
         (i32.store8 (i32.const 4200) (i32.const 4))
         (i32.store (i32.const 4208) (i32.load (i32.const 4096)))
         (i32.store (i32.const 4212) (i32.load (i32.const 4100)))
         (i32.store8 (i32.const 4224) (i32.const 2))
         (i64.store (i32.const 4232) (i64.const {number}))
         (call $execute (i32.const 3072) (i32.const {}) (i32.const 4200) (i32.const 2) (i32.const 4400))
         (if (i32.load8_u (i32.const 4400)) (then unreachable))
         (i32.const 1024)",
        STATEMENT.len()
    );
    guest(&declarations, &body)
}

/// A component that does nothing and takes the compiler many seconds.
pub fn heavy() -> Vec<u8> {
    const FUNCTIONS: usize = 64;
    const LOCALS: usize = 48;
    const STEPS: usize = 2_500;
    // Every value lives across every call: registers are never enough.
    let step = |number: usize| {
        let [to, one, other] = [7, 13, 29].map(|factor| number * factor % LOCALS);
        format!("(local.set {to} (call $mix (local.get {one}) (local.get {other})))")
    };
    let body: String = (0..STEPS).map(step).collect();
    let functions: String = (0..FUNCTIONS)
        .map(|_| {
            format!(
                "(func (param i64 i64) (local{}) {body})\n",
                " i64".repeat(LOCALS - 2)
            )
        })
        .collect();
    let mix = "(func $mix (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1)))";
    guest(&format!("{mix}\n{functions}"), "(i32.const 1024)")
}

/// Puts bytes in the place of a file, in one step, as a careful deployment does.
pub fn rename_into(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}
