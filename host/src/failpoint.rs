//! Named instants at which a test can end or freeze the process: one between every two steps.
//!
//! Armed by the environment variable `HAPAX_FAILPOINT` when a process starts, and by nothing else; a process
//! in which it is armed says so on stderr first. It is part of every build, the released one too, so that what
//! is killed at every step is the program that runs in production and not a relative of it. Without the
//! variable a point is one relaxed load of a flag that never changes; and with it a person can do no more than
//! `kill` can, which the promise covers at any instruction.
//!
//! `HAPAX_FAILPOINT=after-commit@3=kill` kills at the third passage. Orders are separated by `;`. An order is
//! `POINT[@NUMBER][@key=KEY]=ACTION`: the number counts passages from 1 (those of the key, if one is named), a
//! key is given as text and stands last, and the actions are `kill` (SIGKILL) and `stop` (SIGSTOP, until
//! somebody sends SIGCONT).
//!
//! The points carry the names of the steps of DESIGN: what comes before the step, in the middle of it, after.

mod order;

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use order::Order;

pub use order::BadOrder;

/// The variable that arms points.
pub const VARIABLE: &str = "HAPAX_FAILPOINT";

static ARMED: AtomicBool = AtomicBool::new(false);
static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// An instant between two steps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// Every point there is, in the order in which a host meets them.
            pub const ALL: &[Point] = &[$(Point::$point),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// Migration: the pending ones are known, nothing has been changed.
    BeforeMigration = "before-migration",
    /// Migration: the statements have run, their transaction is open.
    MidMigration = "mid-migration",
    /// Migration: it is committed.
    AfterMigration = "after-migration",
    /// Start: a consumer's row is in the store.
    AfterRegister = "after-register",
    /// Plugins: a copy of a component is kept, nothing has been compiled.
    AfterPluginCopy = "after-plugin-copy",
    /// Plugins: it is compiled and tried out, its machine code is kept, and another version serves.
    AfterPluginCompile = "after-plugin-compile",
    /// Plugins: what an operator has brought is in the plugin's file, and another version serves.
    AfterPluginWrite = "after-plugin-write",
    /// Plugins: new batches run on it, and nobody has been told.
    AfterPluginSwap = "after-plugin-swap",
    /// Source: a delivery is here, and nobody has looked at it.
    AfterReceive = "after-receive",
    /// Key: it is read, and no lane knows of the message.
    AfterKey = "after-key",
    /// Waiting: a row is due, and no lane knows of it.
    AfterDue = "after-due",
    /// Lane: the start of a message that runs alone is about to be recorded.
    BeforeStart = "before-start",
    /// Lane: its start is on record.
    AfterStart = "after-start",
    /// Lane: a recorded start is about to be taken back, because the host stops.
    BeforeUndoStart = "before-undo-start",
    /// Commit: the transaction has begun.
    AfterBegin = "after-begin",
    /// Ledger: the keys that are new are claimed, the fates of the others are not known.
    MidClaim = "mid-claim",
    /// Ledger: the keys of the batch are claimed.
    AfterClaim = "after-claim",
    /// Sandbox: the handler has called the host.
    MidHandler = "mid-handler",
    /// Sandbox: a statement of the handler has run, and the handler does not know its answer.
    MidStatement = "mid-statement",
    /// Effects: every message has run, what they have deferred is not written.
    BeforeEffects = "before-effects",
    /// Effects: what was deferred is written.
    AfterEffects = "after-effects",
    /// Commit: the rows of messages that have run from the table are removed.
    AfterRemove = "after-remove",
    /// Commit: failed messages that will run again are written, their keys are not settled.
    MidRetry = "mid-retry",
    /// Commit: messages to be parked are written, their keys are not settled.
    MidPark = "mid-park",
    /// Commit: messages that wait behind another one are written, their keys are not settled.
    MidHold = "mid-hold",
    /// Commit: what stood behind a message that has gone is due.
    AfterRelease = "after-release",
    /// Commit: the keys of failed messages have their fates.
    AfterFates = "after-fates",
    /// Commit: the answers for duplicates are written.
    AfterReplies = "after-replies",
    /// Commit: the outgoing messages are written.
    AfterOutbox = "after-outbox",
    /// Commit: `finish` has counted the claims.
    BeforeCommit = "before-commit",
    /// Commit: the COMMIT is on its way, its answer is not here.
    AtCommit = "at-commit",
    /// Commit: the database has said that it committed.
    AfterCommit = "after-commit",
    /// Ack: the relay has the outgoing messages, the source has no verdict.
    BeforeSettle = "before-settle",
    /// Ack: an acknowledgement is about to be sent.
    BeforeAck = "before-ack",
    /// Ack: it is sent.
    AfterAck = "after-ack",
    /// Relay: rows that are due, or whose host is gone, are about to be taken.
    BeforeOutboxTake = "before-outbox-take",
    /// Relay: such rows are this host's now.
    AfterOutboxTake = "after-outbox-take",
    /// Relay: what a COMMIT in doubt has left is found.
    AfterRecover = "after-recover",
    /// Relay: a block is about to be published.
    BeforePublish = "before-publish",
    /// Relay: a message is on its way to the broker.
    AfterPublish = "after-publish",
    /// Relay: the block is on its way, no confirm has been read.
    BeforeConfirm = "before-confirm",
    /// Relay: the broker has confirmed, the row does not know.
    AfterConfirm = "after-confirm",
    /// Relay: confirmed rows are about to be removed.
    BeforeOutboxDelete = "before-outbox-delete",
    /// Relay: they are removed.
    AfterOutboxDelete = "after-outbox-delete",
    /// Relay: rows that cannot be sent, or wait for one that was not, are about to be kept for later.
    BeforeOutboxDefer = "before-outbox-defer",
    /// Relay: they are kept.
    AfterOutboxDefer = "after-outbox-defer",
    /// Operator: parked rows are about to be replayed.
    BeforeReplay = "before-replay",
    /// Operator: they are due again.
    AfterReplay = "after-replay",
    /// Operator: parked rows are about to be discarded.
    BeforeDiscard = "before-discard",
    /// Operator: they are gone, their keys remembered.
    AfterDiscard = "after-discard",
    /// Operator: a parked message has another body, and is parked.
    AfterEdit = "after-edit",
    /// Operator: the journal says what was done, or is about to be.
    AfterNote = "after-note",
    /// Operator: a consumer is paused, or is not any more.
    AfterPause = "after-pause",
    /// Operator: messages that could not be sent are due.
    AfterOutboxRetry = "after-outbox-retry",
    /// Operator: the generation of message ids is raised, and hosts may make ids of the old one.
    AfterGeneration = "after-generation",
    /// Operator: the keys to be forgotten are.
    AfterForget = "after-forget",
    /// Operator: keys are about to be taken over, their retention is noted.
    BeforeImport = "before-import",
    /// Operator: a block of keys is taken over.
    AfterImport = "after-import",
    /// Operator: fingerprints of an old rule are forgotten, the rules are the old ones.
    MidRekey = "mid-rekey",
    /// Operator: the rules are changed.
    AfterRekey = "after-rekey",
    /// Sweep: a step is about to forget expired keys.
    BeforeSweep = "before-sweep",
    /// Sweep: they are forgotten, and the horizon stands.
    AfterSweep = "after-sweep",
    /// Drain: the lanes of a consumer have ended, its last acknowledgements are not sent.
    AfterLanes = "after-lanes",
    /// Drain: the last acknowledgements are out.
    AfterLastAcks = "after-last-acks",
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Arms the points that the environment names, and says so on stderr. Called once, before anything else.
pub fn arm() -> Result<(), BadOrder> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let orders = order::read(&text.to_string_lossy())?;
    say(&format!(
        "{VARIABLE} is set, for tests only: this process will stop or kill itself at {}",
        text.to_string_lossy()
    ));
    if ORDERS.set(orders).is_ok() {
        ARMED.store(true, Ordering::Release);
    }
    Ok(())
}

/// Passes a point.
#[inline]
pub fn pass(point: Point) {
    if ARMED.load(Ordering::Relaxed) {
        obey(point, &[]);
    }
}

/// Passes a point with a message whose key is `key`; empty where it has none.
#[inline]
pub fn pass_with(point: Point, key: &[u8]) {
    if ARMED.load(Ordering::Relaxed) {
        obey(point, key);
    }
}

/// Passes a point, if `happens`.
#[inline]
pub fn pass_if(point: Point, happens: bool) {
    if happens {
        pass(point);
    }
}

/// Passes a point whenever `future` has to wait: what it asked for is on its way.
#[inline]
pub async fn pass_while<F: Future>(point: Point, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        if polled.is_pending() {
            pass(point);
        }
        polled
    })
    .await
}

#[cold]
fn obey(point: Point, key: &[u8]) {
    for order in ORDERS.get().into_iter().flatten() {
        if let Some(action) = order.due(point, key) {
            say(&format!("failpoint {point}: {action}"));
            action.act();
        }
    }
}

/// On stderr, which may be closed: that must not change what happens at a point.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "hapax: {text}");
}

#[cfg(test)]
mod tests;
