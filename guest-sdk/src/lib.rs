//! Write Hapax message handlers in Rust.
//!
//! A handler is a function that takes a message and says what became of it. What it asks for on
//! the way (SQL, state, outgoing messages) commits together with the record that the message was
//! handled, in one database transaction, or not at all.
//!
//! ```
//! use hapax_guest::prelude::*;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct OrderPaid { order_id: String, user_id: String, amount_cents: i64 }
//!
//! #[derive(Serialize)]
//! struct Credited<'a> { order_id: &'a str, points: i64 }
//!
//! #[hapax_guest::handler]
//! fn handle(order: Json<OrderPaid>) -> Result<Outcome, Failure> {
//!     let points = order.amount_cents / 100;
//!     sql::execute(
//!         "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)",
//!         params![order.order_id, order.user_id, points],
//!     )?;
//!     outbox::to("points-credited").json(&Credited { order_id: &order.order_id, points })?;
//!     Ok(Outcome::Done)
//! }
//! # fn main() {}
//! ```
//!
//! Build it for `wasm32-wasip2` as a `cdylib`. On any other target the same function is an
//! ordinary one, and [`testing`] runs it without WebAssembly and without a database.
//!
//! # What `?` does
//!
//! | error | becomes |
//! |---|---|
//! | a foreign key is missing | retry: the parent's message is late |
//! | any other constraint | reject |
//! | JSON that does not fit | reject |
//! | every other error | retry |
//!
//! Errors of the database other than constraints never reach the handler: the host ends the run.

#![warn(missing_docs)]

#[doc(hidden)]
pub mod bindings;
pub mod context;
mod failure;
mod host;
pub mod log;
mod message;
pub mod outbox;
mod scalar;
pub mod sql;
pub mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use bindings::hapax::plugin::types::{Header, HeaderValue, Outcome, Properties};
pub use failure::{Failure, HandlerResult};
pub use hapax_guest_macros::handler;
pub use message::{FromMessage, Json, Message};
pub use scalar::{Decimal, Timestamp, Uuid};

/// What a handler usually needs: `use hapax_guest::prelude::*;`.
pub mod prelude {
    pub use crate::sql::WriteResult as _;
    pub use crate::{Failure, Json, Message, Outcome, params};
    pub use crate::{context, log, outbox, sql, state};
}

/// What `#[handler]` expands to.
#[doc(hidden)]
pub mod __private {
    pub use crate::__export_handler as export_handler;
}

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_handler {
    ($handle:ident) => {
        struct Component;
        impl $crate::bindings::Guest for Component {
            fn handle(
                message: $crate::Message,
            ) -> ::core::result::Result<$crate::Outcome, $crate::bindings::Failure> {
                $handle(&message).map_err(::core::convert::Into::into)
            }
        }
        $crate::bindings::export!(Component with_types_in $crate::bindings);
    };
}

#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_handler {
    // Names the function, so that the types are checked here too and nothing is called unused.
    ($handle:ident) => {
        const _: fn(&$crate::Message) -> ::core::result::Result<$crate::Outcome, $crate::Failure> =
            $handle;
    };
}
