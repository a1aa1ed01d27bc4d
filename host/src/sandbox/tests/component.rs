//! Components for the tests: a core module in the text format, joined with the real WIT.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The parts of WASI that the modules here call, in the shape in which toolchains import them.
const WASI: &[&str] = &[
    "package wasi:io@0.2.6;
     interface error { resource error; }
     interface streams {
       use error.{error};
       variant stream-error { last-operation-failed(error), closed }
       resource output-stream {
         blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
       }
     }",
    "package wasi:cli@0.2.6;
     interface stderr {
       use wasi:io/streams@0.2.6.{output-stream};
       get-stderr: func() -> output-stream;
     }
     interface exit { exit: func(status: result); }
     interface environment { get-environment: func() -> list<tuple<string, string>>; }",
    "package wasi:clocks@0.2.6;
     interface wall-clock {
       record datetime { seconds: u64, nanoseconds: u32 }
       now: func() -> datetime;
     }
     interface monotonic-clock { now: func() -> u64; }",
    "package wasi:filesystem@0.2.6;
     interface types { resource descriptor; }
     interface preopens {
       use types.{descriptor};
       get-directories: func() -> list<tuple<descriptor, string>>;
     }",
    "package wasi:sockets@0.2.6;
     interface network {
       enum ip-address-family { ipv4, ipv6 }
       enum error-code {
         unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout,
         concurrency-conflict, not-in-progress, would-block, invalid-state, new-socket-limit,
         address-not-bindable, address-in-use, remote-unreachable, connection-refused,
         connection-reset, connection-aborted, datagram-too-large, name-unresolvable,
         temporary-resolver-failure, permanent-resolver-failure,
       }
     }
     interface tcp { resource tcp-socket; }
     interface tcp-create-socket {
       use network.{ip-address-family, error-code};
       use tcp.{tcp-socket};
       create-tcp-socket: func(family: ip-address-family) -> result<tcp-socket, error-code>;
     }
     interface udp { resource udp-socket; }
     interface udp-create-socket {
       use network.{ip-address-family, error-code};
       use udp.{udp-socket};
       create-udp-socket: func(family: ip-address-family) -> result<udp-socket, error-code>;
     }",
    "package wasi:random@0.2.6;
     interface random { get-random-u64: func() -> u64; }
     interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }",
];

const WORLD: &str = "package test:guest;
    world guest {
      include hapax:plugin/handler@0.1.0;
      import wasi:cli/stderr@0.2.6;
      import wasi:cli/exit@0.2.6;
      import wasi:cli/environment@0.2.6;
      import wasi:clocks/wall-clock@0.2.6;
      import wasi:clocks/monotonic-clock@0.2.6;
      import wasi:filesystem/preopens@0.2.6;
      import wasi:sockets/tcp-create-socket@0.2.6;
      import wasi:sockets/udp-create-socket@0.2.6;
      import wasi:random/random@0.2.6;
      import wasi:random/insecure-seed@0.2.6;
    }";

/// A component whose `handle` does what `body` says. `declarations` come first: imports before the rest.
///
/// Memory is zero from 1024 to 2048, so that `i32.const 1024` is the result `ok(done)`; what the host
/// returns or passes is put at 8192 and above.
pub fn guest(declarations: &str, body: &str) -> Vec<u8> {
    component(&guest_module(declarations, body))
}

/// The core module of [`guest`], as text.
pub fn guest_module(declarations: &str, body: &str) -> String {
    let (imports, others): (Vec<_>, Vec<_>) = declarations
        .lines()
        .partition(|line| line.trim_start().starts_with("(import"));
    format!(
        "(module $guest {}
           (memory (export \"memory\") 2)
           (global $next (mut i32) (i32.const 8192))
           {}
           (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32)
             (local $at i32)
             (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
             (global.set $next (i32.add (local.get $at) (local.get 3)))
             (local.get $at))
           (func $handle (export \"handle\") (param $envelope i32) (result i32) {body}))",
        imports.join("\n"),
        others.join("\n"),
    )
}

/// A core module with the exports of the world, as a component.
pub fn component(module: &str) -> Vec<u8> {
    encode(wat::parse_str(module).expect("the module is well-formed"))
}

/// The same for a module as bytes.
pub fn encode(mut wasm: Vec<u8>) -> Vec<u8> {
    let mut resolve = Resolve::new();
    let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../wit");
    resolve.push_path(wit).expect("the WIT is well-formed");
    for package in WASI {
        resolve
            .push_str("wasi.wit", package)
            .expect("the WIT is well-formed");
    }
    let package = resolve
        .push_str("guest.wit", WORLD)
        .expect("the WIT is well-formed");
    let world = resolve
        .select_world(&[package], Some("guest"))
        .expect("the world is there");
    embed_component_metadata(&mut wasm, &resolve, world, StringEncoding::UTF8)
        .expect("the world can be embedded");
    ComponentEncoder::default()
        .module(&wasm)
        .and_then(|mut encoder| encoder.encode())
        .expect("the module fits the world")
}
