//! Runs a handler natively, without WebAssembly and without a database.
//!
//! A test describes a message and what the host would answer, runs the handler, and looks at what
//! the handler said and asked for:
//!
//! ```
//! use hapax_guest::prelude::*;
//! use hapax_guest::testing;
//!
//! #[hapax_guest::handler]
//! fn handle(user: String) -> Result<Outcome, Failure> {
//!     let rows = sql::query("SELECT mail FROM users WHERE id = $1", params![user])?;
//!     let Some(mail) = rows.scalar::<&str>()? else {
//!         return Err(Failure::retry("no such user yet"));
//!     };
//!     outbox::to("welcome").header("attempt", context::attempt()).text(mail)?;
//!     Ok(Outcome::Done)
//! }
//!
//! let run = testing::Message::text("7")
//!     .attempt(2)
//!     .rows("FROM users", &["mail"], [params!["ada@example.org"]])
//!     .run(handle);
//! assert_eq!(run.result, Ok(Outcome::Done));
//! assert_eq!(run.sql[0].parameters, params!["7"]);
//! assert_eq!(run.outbox[0].target, "welcome");
//! assert_eq!(run.outbox[0].body, b"ada@example.org");
//!
//! let run = testing::Message::text("8").run(handle);
//! assert_eq!(run.result, Err(Failure::retry("no such user yet")));
//! assert!(run.outbox.is_empty());
//! ```
//!
//! It is a double and no database: it answers what the test scripted and does not understand SQL.
//! A statement without a script touches one row, a query without one returns no rows.

pub(crate) mod host;
mod message;
mod run;
mod script;

pub use message::Message;
pub use run::{Handler, LogLine, Reply, Run, Sent, Statement, StatementKind};
