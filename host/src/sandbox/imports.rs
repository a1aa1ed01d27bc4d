//! The host's answers to the imports of `wit/plugin.wit`, one file an interface.
//!
//! What a call returns is the guest's to see. What ends the attempt instead, a refused statement or a used
//! up limit, leaves the call as a [`Stop`](super::guest::Stop), which the guest can neither see nor catch.

mod context;
mod log;
mod outbox;
mod sql;
mod state;

use wasmtime::component::{HasSelf, Linker};

use super::bindings::{Handler, hapax::plugin::types};
use super::guest::Guest;

pub(super) use log::log_output;

/// Every interface that is linked, as a component names it, without its version.
pub(super) const INTERFACES: &[&str] = &[
    "hapax:plugin/types",
    "hapax:plugin/context",
    "hapax:plugin/sql",
    "hapax:plugin/state",
    "hapax:plugin/outbox",
    "hapax:plugin/log",
];

impl types::Host for Guest {}

/// Links [`INTERFACES`].
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    Handler::add_to_linker::<_, HasSelf<Guest>>(linker, |guest| guest)
}
