//! How each failpoint is reached. The match is exhaustive: a new point needs a scenario to compile.

use hapax::failpoint::Point;

use super::stack::Stack;

/// What goes on when the host is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `hapax migrate` on a store without tables.
    Migrating,
    /// The host starts, or works.
    Running,
    /// The host works for a strict consumer, whose messages wait behind each other.
    InLine,
    /// The host has been asked to stop under load.
    Draining,
    /// It has been asked to stop while the database refuses what it had begun.
    DrainingInTrouble,
    /// An operator loads another version of the plugin while messages flow.
    Swapping,
    /// An operator replays and discards parked messages.
    Operating,
    /// An operator does everything else that may be done while a host runs.
    Mending,
    /// The rules are changed, while no host runs.
    Rekeying,
    /// The connection to the database is cut while the answer of a COMMIT comes back.
    InDoubt,
    /// Everything has expired.
    Expired,
}

/// What kind of messages come, to what kind of consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Day {
    /// Messages of every kind, and an operator who replays and discards.
    Ordinary,
    /// Messages that are forgotten soon.
    Expiring,
    /// Messages in lines, to a strict consumer that answers.
    Lines,
    /// Messages of every kind, and an operator who does everything else.
    Mended,
    /// Good messages, and rules that are changed after them.
    Rekeyed,
}

pub struct Scenario {
    /// Where the lives before this one were killed, so that there is something to meet.
    pub earlier: &'static [Point],
    pub when: When,
    /// The passage that is the last.
    pub passage: u64,
}

impl Scenario {
    pub fn day(&self) -> Day {
        match self.when {
            When::Expired => Day::Expiring,
            When::InLine => Day::Lines,
            When::Mending => Day::Mended,
            When::Rekeying => Day::Rekeyed,
            _ => Day::Ordinary,
        }
    }
}

/// Points at which a host dies with messages on their way: received, worked on, committed, about to be acknowledged,
/// and given back in an orderly way.
pub const WHERE_MESSAGES_COME_BACK: [Point; 5] = [
    Point::AfterReceive,
    Point::MidHandler,
    Point::AfterCommit,
    Point::BeforeAck,
    Point::AfterLanes,
];

/// `Err` holds the reason why a point cannot be reached on this stack.
pub fn of(point: Point, stack: Stack) -> Result<Scenario, &'static str> {
    use Point::*;
    let (earlier, when): (&[Point], When) = match point {
        BeforeMigration | MidMigration | AfterMigration => (&[], When::Migrating),
        AfterPluginCopy | AfterPluginCompile => (&[], When::Swapping),
        AfterPluginWrite | AfterPluginSwap => (&[], When::Swapping),
        AfterRegister | AfterReceive | AfterKey | AfterDue => (&[], When::Running),
        // Only what was delivered before, and what comes from the table, runs alone.
        BeforeStart | AfterStart => (&[AfterClaim], When::Running),
        BeforeUndoStart => (&[AfterClaim], When::DrainingInTrouble),
        AfterBegin | MidClaim | AfterClaim | MidHandler | MidStatement => (&[], When::Running),
        BeforeEffects | AfterEffects | AfterRemove | MidRetry | MidPark => (&[], When::Running),
        MidHold | AfterRelease | AfterReplies => (&[], When::InLine),
        AfterFates | AfterOutbox | BeforeCommit | AtCommit | AfterCommit => (&[], When::Running),
        BeforeSettle | BeforeAck | AfterAck => (&[], When::Running),
        BeforeOutboxTake => (&[], When::Running),
        // Rows of a host that is gone.
        AfterOutboxTake => (&[BeforePublish], When::Running),
        AfterRecover => match stack {
            Stack::Servers(_) => (&[], When::InDoubt),
            Stack::File => return Err("a COMMIT of SQLite in the same process is never in doubt"),
        },
        BeforePublish | AfterPublish | BeforeConfirm | AfterConfirm => (&[], When::Running),
        BeforeOutboxDelete | AfterOutboxDelete => (&[], When::Running),
        BeforeOutboxDefer | AfterOutboxDefer => match stack {
            Stack::Servers(_) => (&[], When::Running),
            Stack::File => {
                return Err("every target of the embedded broker has its queue from the start");
            }
        },
        BeforeReplay | AfterReplay | BeforeDiscard | AfterDiscard => (&[], When::Operating),
        AfterEdit | AfterNote | AfterPause | AfterOutboxRetry => (&[], When::Mending),
        AfterGeneration | AfterForget | BeforeImport | AfterImport => (&[], When::Mending),
        MidRekey | AfterRekey => (&[], When::Rekeying),
        BeforeSweep | AfterSweep => (&[], When::Expired),
        AfterLanes | AfterLastAcks => (&[], When::Draining),
    };
    Ok(Scenario {
        earlier,
        when,
        passage: match point {
            // The first passage is the host's start.
            AfterPluginCopy | AfterPluginCompile => 2,
            _ => 1,
        },
    })
}
