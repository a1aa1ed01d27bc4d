//! What can go wrong, in three classes; the class decides what happens next, never the place.
//!
//! - the **message's** own failure counts an attempt and ends in `hapax_waiting`, retried or parked;
//! - the **world's** (a server is away, a lock is held, the host is stopping) counts nothing: the work is
//!   held and done again;
//! - **ours** is a broken invariant: the consumer stops, loudly, and nothing is acknowledged.

use std::time::Duration;

/// A stable name of a failure, as an operator meets it in logs, metrics, parked rows and ERRORS.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub &'static str);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Code = Code($text);)*
        /// Every code, for the documents and for reading a code back from a table.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

/// The codes of a message's own failures.
pub mod code {
    use super::Code;

    codes! {
        /// The key's source is not in the message, or it is empty.
        KEY_MISSING = "key-missing";
        /// The key is over 512 bytes, or its source cannot be read.
        KEY_INVALID = "key-invalid";
        /// The key is known, with another payload.
        KEY_REUSED = "key-reused";
        /// The body is over `max-message-bytes`.
        MESSAGE_TOO_LARGE = "message-too-large";
        /// Properties, exchange or routing key that cannot be read: the message is kept as bytes.
        UNREADABLE = "unreadable";
        /// The handler asked for another attempt.
        RETRY = "retry";
        /// The handler said that the message can never succeed.
        REJECTED = "rejected";
        /// The handler crashed: a panic, an abort, an invalid access.
        TRAP = "trap";
        /// The handler used more than `limits.cpu`.
        CPU_LIMIT = "cpu-limit";
        /// The handler took longer than `limits.wall`, waiting included.
        WALL_LIMIT = "wall-limit";
        /// The handler wanted more than `limits.memory`, or more table elements.
        MEMORY_LIMIT = "memory-limit";
        /// More was passed to the host in one call than `limits.hostcall-bytes`.
        HOSTCALL_LIMIT = "hostcall-limit";
        /// More statements, rows or bytes than the consumer's limits, or a statement timeout.
        SQL_LIMIT = "sql-limit";
        /// A statement that the rules or the grants do not allow.
        SQL_REFUSED = "sql-refused";
        /// A statement of the handler that the database does not end, whatever it is told.
        SQL_UNSTOPPABLE = "sql-unstoppable";
        /// The database refused a statement for another reason than a constraint.
        SQL_ERROR = "sql-error";
        /// A constraint refused a deferred statement.
        CONSTRAINT = "constraint";
        /// More outgoing messages or bytes than the consumer's limits.
        OUTBOX_LIMIT = "outbox-limit";
        /// Other transactions won over this message each time.
        CONFLICT = "conflict";
        /// The host went down each time it ran the message.
        CRASH_LOOP = "crash-loop";
        /// The message is older than what the ledger remembers: it may have been applied.
        TOO_LATE = "too-late";
        /// The key has its fate, and the consumer wants to see duplicates.
        DUPLICATE = "duplicate";
        /// No failure: the message waits behind an earlier one of its partition.
        HELD = "held";
        /// No failure: the message was delivered before, has no key, and runs from the table.
        REDELIVERED = "redelivered";
        /// The message alone met a failure of the world again and again while the world was well.
        POISON = "poison";
    }
}

/// Whether a failed message runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// While attempts are left: after the backoff, or after what the handler asked for.
    Later(Option<Duration>),
    /// It can never succeed: parked at once.
    Never,
}

/// A message's own failure: everything the operator will want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub again: Again,
    /// For people. Any bytes a guest produced are made valid text before they get here.
    pub message: String,
    /// What the guest wrote to stdout and stderr, bounded.
    pub stderr: String,
    /// Where it trapped: one frame a line, `handle at src/lib.rs:9:41`.
    pub backtrace: String,
}

impl Failure {
    /// A failure that will not go away by itself.
    pub fn never(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, Again::Never, message)
    }

    /// A failure that another attempt may overcome.
    pub fn later(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, Again::Later(None), message)
    }

    fn new(code: Code, again: Again, message: impl Into<String>) -> Self {
        Self {
            code,
            again,
            message: message.into(),
            stderr: String::new(),
            backtrace: String::new(),
        }
    }
}

/// Whose failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Message,
    World,
    Ours,
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn every_code_is_explained_to_the_operator_and_no_other_is() {
        let text = include_str!("../ERRORS.md");
        let mut explained = text
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .collect::<Vec<_>>();
        let mut codes = code::ALL.iter().map(|code| code.0).collect::<Vec<_>>();
        explained.sort_unstable();
        codes.sort_unstable();
        assert_eq!(explained, codes);
    }
}
