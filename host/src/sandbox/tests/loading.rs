//! What is loaded, what is refused, and what a person is told.

use super::component::{component, guest};
use super::*;

/// How a refused component is reported.
fn refusal(bytes: &[u8]) -> String {
    Plugin::from_bytes(&SANDBOX, "plugins/a.wasm", bytes)
        .expect_err("the component is refused")
        .to_string()
}

/// A component in the text format.
fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).expect("the component is well-formed")
}

#[test]
fn a_loaded_plugin_knows_its_digest_imports_and_memory() {
    let bytes = guest(
        r#"(import "hapax:plugin/context@0.1.0" "attempt" (func $attempt (result i32)))"#,
        "(drop (call $attempt)) (i32.const 1024)",
    );
    let plugin = load(&bytes);
    use sha2::{Digest, Sha256};
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    assert_eq!(plugin.digest(), &digest);
    assert_eq!(plugin.size_bytes(), bytes.len() as u64);
    assert_eq!(plugin.initial_memory_bytes(), 2 * 64 * 1024);
    let context = plugin
        .imports()
        .iter()
        .find(|import| import.name == "hapax:plugin/context@0.1.0")
        .expect("the interface is imported");
    assert_eq!(context.functions, ["attempt"]);
}

#[test]
fn a_missing_file_is_named() {
    let error =
        Plugin::load(&SANDBOX, "/no/such/plugin.wasm".as_ref()).expect_err("nothing is there");
    assert!(matches!(error.problem, LoadProblem::Unreadable(_)));
    assert!(
        error
            .to_string()
            .starts_with("plugin /no/such/plugin.wasm: cannot read the file")
    );
}

#[test]
fn what_is_no_component_is_told_apart() {
    let module = text("(module)");
    let told = [
        (&b""[..], "the file is empty"),
        (b"[package]\nname = \"points\"", "it is text"),
        (b"(component)", "text format"),
        (b"\x89PNG\r\n\x1a\n\xff\xff", "four bytes"),
        (&module, "wasm-tools component new"),
    ];
    for (bytes, words) in told {
        let refusal = refusal(bytes);
        assert!(refusal.contains(words), "{refusal}");
        assert!(refusal.starts_with("plugin plugins/a.wasm: "), "{refusal}");
    }
}

#[test]
fn precompiled_code_is_not_accepted() {
    let component = guest("", "(i32.const 1024)");
    let machine_code = SANDBOX
        .engine
        .precompile_component(&component)
        .expect("the component compiles");
    assert!(refusal(&machine_code).contains("precompiled"));
}

#[test]
fn a_truncated_component_is_refused() {
    let component = guest("", "(i32.const 1024)");
    assert!(refusal(&component[..component.len() / 2]).contains("cut off or damaged"));
}

#[test]
fn a_foreign_import_is_shown_beside_what_there_is() {
    let refusal = refusal(&text(
        r#"(component
             (import "wasi:http/outgoing-handler@0.2.0" (instance (export "handle" (func))))
             (import "acme:secrets/vault" (instance))
             (import "wasi:random/random@0.2.3" (instance (export "get-random-u64" (func (result u64)))))
           )"#,
    ));
    expect_test::expect![[r#"
        plugin plugins/a.wasm: the component wants what a handler is not granted
          it imports and may not:
            - wasi:http/outgoing-handler@0.2.0 (handle)
                a handler has no network: publish to a service that calls out, with a line in the consumer like `targets = { NAME = { exchange = "", routing-key = "QUEUE" } }`
            - acme:secrets/vault
          it imports and may:
            + wasi:random/random@0.2.3
          no line of a configuration grants another interface
          there is: hapax:plugin/{context, sql, state, outbox, log}, and of WASI 0.2, without anything behind it: cli, clocks, filesystem, io, random, sockets"#]]
    .assert_eq(&refusal);
}

#[test]
fn a_granted_interface_with_another_shape_is_refused() {
    let refusal = refusal(&text(
        r#"(component
             (import "hapax:plugin/context@0.1.0" (instance (export "now" (func (result string)))))
           )"#,
    ));
    assert!(refusal.contains("another world"), "{refusal}");
    assert!(refusal.contains("hapax:plugin/context@0.1.0"), "{refusal}");
}

#[test]
fn a_component_without_handle_is_of_another_world() {
    let refusal = refusal(&text("(component)"));
    assert!(refusal.contains("another world"), "{refusal}");
    assert!(refusal.contains("`handle`"), "{refusal}");
}

#[test]
fn a_handle_of_another_type_is_of_another_world() {
    let refusal = refusal(&text(
        r#"(component
             (core module $m (func (export "handle")))
             (core instance $i (instantiate $m))
             (func (export "handle") (canon lift (core func $i "handle"))))"#,
    ));
    assert!(refusal.contains("another world"), "{refusal}");
}

#[test]
fn a_component_that_traps_at_its_start_is_refused() {
    let refusal = refusal(&guest(
        "(func $boom unreachable)\n(start $boom)",
        "(i32.const 1024)",
    ));
    assert!(refusal.contains("does not start"), "{refusal}");
}

#[test]
fn a_component_that_does_not_come_to_its_end_may_be_tried_again() {
    let spins = guest(
        "(func $spin (loop (br 0)))\n(start $spin)",
        "(i32.const 1024)",
    );
    let refused = Plugin::from_bytes(&SANDBOX, "a.wasm", &spins).expect_err("it is refused");
    assert!(refused.problem.may_pass(), "{refused}");
    let traps = guest(
        "(func $boom unreachable)\n(start $boom)",
        "(i32.const 1024)",
    );
    let refused = Plugin::from_bytes(&SANDBOX, "a.wasm", &traps).expect_err("it is refused");
    assert!(!refused.problem.may_pass(), "{refused}");
}

#[test]
fn only_a_component_that_can_run_is_kept() {
    let place = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(place.path()).expect("a cache");
    let copies = || {
        let entries = std::fs::read_dir(place.path().join("components")).expect("it is there");
        entries.count()
    };
    let load = |bytes: &[u8]| Plugin::from_cache(&SANDBOX, "a.wasm", bytes, Some(&cache));
    let good = guest("", "(i32.const 1024)");
    load(&text("(component)")).expect_err("it is of another world");
    load(&good[..good.len() / 2]).expect_err("it is cut off");
    assert_eq!(copies(), 0);
    let plugin = load(&good).expect("it loads");
    assert_eq!(cache.component(plugin.digest()), Some(good));
}

#[tokio::test]
async fn plugins_that_are_tried_out_take_no_lane_s_place() {
    use futures_util::FutureExt;
    let sandbox = Sandbox::new(SandboxOptions {
        concurrent_instances: 1,
        max_memory: MIB,
        max_table_elements: 1_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    });
    let sandbox = sandbox.expect("the engine starts");
    let mut tried_out = Vec::new();
    for _ in 0..MAX_LOADS {
        tried_out.push(sandbox.slot().await);
    }
    assert!(sandbox.slot().now_or_never().is_some(), "the lane waits");
}

#[test]
fn a_component_that_begins_with_more_memory_than_any_consumer_allows_is_refused() {
    let refusal = refusal(&component(
        r#"(module (memory (export "memory") 2000)
             (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
             (func (export "handle") (param i32) (result i32) unreachable))"#,
    ));
    assert!(refusal.contains("memory"), "{refusal}");
}
