//! The one place where this crate meets the host.
//!
//! In a component these are the imports; elsewhere they are the test double, with the same
//! signatures. Nothing above this line knows which.

#[cfg(target_arch = "wasm32")]
pub(crate) use crate::bindings::hapax::plugin::{context, log, outbox, sql, state};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::host::{context, log, outbox, sql, state};
