//! WASI 0.2, all of it virtual: what toolchains expect to find, and nothing behind it.
//!
//! No environment, arguments, input, files or network. The clocks stand at the attempt's start. Randomness
//! is derived from the message. Output is captured. Each interface is linked by name, so that whatever a
//! new version of the library brings stays out until somebody puts it on this list; `wasi:http` is not.

mod clocks;
mod output;
mod random;

use wasmtime::component::{HasData, HasSelf, Linker, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliCtx, WasiCliCtxView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::{
    cli, clocks as clocks_world, filesystem, io, random as random_world, sockets,
};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtx, WasiSocketsCtxView};

use crate::config::{Limits, Random};

use super::guest::Guest;
use super::limits::MAX_HANDLES;

pub(super) use output::Output;
use random::Randomness;

/// Every interface that is linked, as a component names it.
pub(super) const INTERFACES: &[&str] = &[
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:clocks/wall-clock",
    "wasi:clocks/monotonic-clock",
    "wasi:random/random",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:filesystem/types",
    "wasi:filesystem/preopens",
    "wasi:sockets/network",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// What a handler finds behind an interface, in a few words for people.
pub(crate) fn stands_behind(interface: &str, random: Random) -> &'static str {
    let name = interface
        .split_once('@')
        .map_or(interface, |(name, _)| name);
    match name.strip_prefix("wasi:").unwrap_or(name) {
        "io/error" | "io/poll" | "io/streams" => "carries what the others have",
        "clocks/wall-clock" | "clocks/monotonic-clock" => "stands still at the attempt's start",
        "random/random" | "random/insecure" | "random/insecure-seed" => match random {
            Random::Seeded => "equal in every attempt, and not guessable",
            Random::Secure => "drawn anew in each attempt",
        },
        "cli/stdout" | "cli/stderr" => "kept for the log and the parked row",
        "cli/exit" => "ends the attempt",
        "sockets/network"
        | "sockets/instance-network"
        | "sockets/ip-name-lookup"
        | "sockets/tcp"
        | "sockets/tcp-create-socket"
        | "sockets/udp"
        | "sockets/udp-create-socket" => "denied",
        _ => "empty",
    }
}

/// What WASI keeps for one instance. Making it costs nothing until it is used.
pub(super) struct Wasi {
    table: ResourceTable,
    output: Output,
    random: Option<Randomness>,
    cli: WasiCliCtx,
    files: WasiFilesystemCtx,
    /// Made when a guest first tries to reach a network, to be told that there is none.
    sockets: Option<WasiSocketsCtx>,
}

impl Wasi {
    pub(super) fn new(limits: &Limits) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        Self {
            table,
            output: Output::new(limits.log_bytes),
            random: None,
            cli: WasiCliCtx::default(),
            files: WasiFilesystemCtx::default(),
            sockets: None,
        }
    }

    /// What the guest wrote to stdout and stderr so far.
    pub(super) fn written(&self) -> String {
        self.output.text()
    }
}

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

fn table(guest: &mut Guest) -> &mut ResourceTable {
    &mut guest.wasi.table
}

fn itself(guest: &mut Guest) -> &mut Guest {
    guest
}

fn no_terminal(guest: &mut Guest) -> WasiCliCtxView<'_> {
    WasiCliCtxView {
        ctx: &mut guest.wasi.cli,
        table: &mut guest.wasi.table,
    }
}

fn no_files(guest: &mut Guest) -> WasiFilesystemCtxView<'_> {
    WasiFilesystemCtxView {
        ctx: &mut guest.wasi.files,
        table: &mut guest.wasi.table,
    }
}

fn no_network(guest: &mut Guest) -> WasiSocketsCtxView<'_> {
    WasiSocketsCtxView {
        ctx: guest.wasi.sockets.get_or_insert_default(),
        table: &mut guest.wasi.table,
    }
}

/// Links [`INTERFACES`].
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<_, Io>(linker, table)?;
    io::poll::add_to_linker::<_, Io>(linker, table)?;
    io::streams::add_to_linker::<_, Io>(linker, table)?;

    clocks_world::wall_clock::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    clocks_world::monotonic_clock::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;

    random_world::random::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    random_world::insecure::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    random_world::insecure_seed::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;

    cli::exit::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    cli::stdout::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    cli::stderr::add_to_linker::<_, HasSelf<Guest>>(linker, itself)?;
    cli::environment::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, no_terminal)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, no_terminal)?;

    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, no_files)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, no_files)?;

    let stable_only = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<_, WasiSockets>(linker, &stable_only, no_network)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    sockets::ip_name_lookup::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    sockets::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    sockets::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, no_network)?;
    Ok(())
}
