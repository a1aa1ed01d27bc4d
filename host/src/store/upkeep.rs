//! What operators need from a store, beside what the pipeline does: to look, to mend, to agree with hosts.
//!
//! Part of the contract of a session, [`Session::upkeep`](super::Session::upkeep). Nothing here is on the way of a message. Hosts and
//! operators agree by [`Mark`]s that a session holds for as long as it lives, so that a host that is killed
//! is known to be gone without a clock.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    ClaimRule, ConsumerId, Fate, OutboxRecord, Status, StoreError, StuckSession, WaitingRow,
};

/// What a host works by, as others can see it. Any number of sessions may hold the same mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// It reads keys and fingerprints by the rules in the consumer's row.
    Rules(ConsumerId),
    /// It makes message ids of this generation.
    Generation(ConsumerId, i32),
}

/// An operator's wish that a consumer takes no messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub by: String,
    pub why: String,
    /// Microseconds since the Unix epoch.
    pub since: i64,
}

/// The row of a consumer as hosts watch it and operators change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerMarks {
    pub id: ConsumerId,
    pub name: String,
    pub key_rule: String,
    pub fingerprint_rule: String,
    pub generation: i32,
    pub pause: Option<Pause>,
}

/// The ledger's row of a key, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRecord {
    pub key: Vec<u8>,
    pub fate: Fate,
    pub attempts: i32,
    /// Empty when it is not known: an imported key, or one from before a change of the rule.
    pub fingerprint: Vec<u8>,
    /// The first eight bytes of the component's SHA-256; empty when none ran.
    pub plugin: Vec<u8>,
    /// Microseconds since the Unix epoch; `None` is remembered forever.
    pub expires_at: Option<i64>,
    pub reply: Option<Vec<u8>>,
}

/// Some rows of the ledger, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerPage {
    pub records: Vec<LedgerRecord>,
    /// Where to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// Which rows of the outbox an operator means. Everything that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct OutboxFilter {
    pub consumer: Option<String>,
    pub target: Option<String>,
    pub sequence: Option<i64>,
    /// Only rows that could not be sent and wait for another try.
    pub failed: bool,
    /// Sequences after this one.
    pub after: i64,
    pub limit: u32,
}

/// A row of the outbox with what only operators look at. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub struct OutboxListing {
    pub consumer: String,
    pub record: OutboxRecord,
    pub error: Option<String>,
    pub created_at: i64,
    /// Absent while the row is in the memory of a host.
    pub due_at: Option<i64>,
}

/// A row of `hapax_waiting` as it was read, with the times that the database gave it.
/// Microseconds since the Unix epoch.
#[derive(Clone, Debug)]
pub struct WaitingRecord {
    pub consumer: String,
    pub row: WaitingRow,
    pub first_failed_at: i64,
    pub failed_at: i64,
    /// Absent while the row is parked.
    pub due_at: Option<i64>,
}

/// Which rows an operator means.
#[derive(Clone, Debug, Default)]
pub struct WaitingFilter {
    pub consumer: Option<String>,
    pub status: Option<Status>,
    pub code: Option<String>,
    /// The first bytes of the id, so that a person can type them.
    pub id_prefix: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    /// Failed last in this span, microseconds since the Unix epoch; the end is not in it.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Rows after this one in the order of the list: when it failed, and its id.
    pub after: Option<(i64, Vec<u8>)>,
    /// Leave the bodies away; they come back empty.
    pub without_bodies: bool,
    pub limit: u32,
}

/// What an operator did, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// The database's time, microseconds since the Unix epoch. Not read when it is written.
    pub at: i64,
    pub actor: String,
    /// One word: `forget`, `import`, `rekey`, …
    pub action: String,
    pub consumer: Option<ConsumerId>,
    pub key: Option<Vec<u8>>,
    pub why: String,
}

/// Entries that the journal keeps: the newest.
pub const JOURNAL_ENTRIES: i64 = 10_000;

/// A session at an operator's hands. Every call that changes something is a transaction of its own.
#[async_trait]
pub trait Upkeep: Send {
    /// The database's time, microseconds since the Unix epoch.
    async fn clock(&mut self) -> Result<i64, StoreError>;

    // ---- marks -----------------------------------------------------------------------------------

    /// Holds a mark until this session ends or drops it. Waits while somebody has seized it, up to the
    /// lock timeout. Holding a mark twice is holding it twice.
    async fn hold_mark(&mut self, mark: Mark) -> Result<(), StoreError>;

    /// Gives one hold of a mark back.
    async fn drop_mark(&mut self, mark: Mark) -> Result<(), StoreError>;

    /// How many sessions hold a mark.
    async fn mark_holders(&mut self, mark: Mark) -> Result<u64, StoreError>;

    /// Takes a mark for this session alone, until the session ends: true when nobody held it.
    async fn seize_mark(&mut self, mark: Mark) -> Result<bool, StoreError>;

    // ---- sessions that do not end ----------------------------------------------------------------

    /// Which sessions are at a statement that does not end: those that were left behind and are still there, and
    /// those of these names that are at one for longer than any may take, also of a host that is gone.
    async fn stuck_sessions(&mut self, names: &[String]) -> Result<Vec<StuckSession>, StoreError> {
        let _ = names;
        Ok(Vec::new())
    }

    /// Gives the keys of messages that were parked beside them (`sql-unstoppable`) the fate `parked`, where no
    /// session holds the key any more. True when no such message is left without the fate of its key.
    async fn settle_parked_apart(
        &mut self,
        consumer: ConsumerId,
        retention: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let _ = (consumer, retention);
        Ok(true)
    }

    // ---- consumers -------------------------------------------------------------------------------

    /// The rows of all consumers, by name.
    async fn consumers(&mut self) -> Result<Vec<ConsumerMarks>, StoreError>;

    /// Asks for a pause, or ends it (`None`). `(by, why)`.
    async fn set_pause(
        &mut self,
        consumer: ConsumerId,
        pause: Option<(&str, &str)>,
    ) -> Result<(), StoreError>;

    /// Replaces the rules that hosts compare theirs with.
    async fn set_rules(
        &mut self,
        consumer: ConsumerId,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<(), StoreError>;

    /// Adds one to the generation and returns it.
    async fn raise_generation(&mut self, consumer: ConsumerId) -> Result<i32, StoreError>;

    // ---- ledger ----------------------------------------------------------------------------------

    /// The rows of keys, in their order.
    async fn ledger_find(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<LedgerRecord>>, StoreError>;

    /// Rows after a key, of one fate or all: at most `limit`, among the next `scan` rows.
    async fn ledger_page(
        &mut self,
        consumer: ConsumerId,
        fate: Option<Fate>,
        after: &[u8],
        scan: u32,
        limit: u32,
    ) -> Result<LedgerPage, StoreError>;

    /// Removes the rows of keys that nothing waits for; returns the keys that were removed.
    async fn ledger_forget(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Inserts keys as committed without an attempt; keys that are there stay as they are. Each with its
    /// fingerprint, empty where it is not known. Returns how many were new. Keys are distinct and sorted.
    async fn ledger_import(
        &mut self,
        rule: ClaimRule<'_>,
        keys: &[(&[u8], &[u8])],
    ) -> Result<u64, StoreError>;

    /// Makes the fingerprints of the next `limit` keys after `after` unknown, and those of all waiting
    /// rows; returns where to go on, `None` at the end.
    async fn forget_fingerprints(
        &mut self,
        consumer: ConsumerId,
        after: &[u8],
        limit: u32,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    // ---- waiting ---------------------------------------------------------------------------------

    /// Rows by consumer and code that the filter means; its limit and cursor are not read.
    async fn waiting_tally(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<(String, String, u64)>, StoreError>;

    /// Replaces the body of a parked row: true when the row was there with the old body.
    async fn waiting_edit(
        &mut self,
        id: &[u8],
        old_body: &[u8],
        new_body: &[u8],
    ) -> Result<bool, StoreError>;

    // ---- outbox ----------------------------------------------------------------------------------

    /// Rows in the order in which they were written.
    async fn outbox_list(
        &mut self,
        filter: &OutboxFilter,
    ) -> Result<Vec<OutboxListing>, StoreError>;

    /// Makes rows due now that wait for their time; returns how many. Rows in the memory of a host are
    /// not touched. The filter's limit and cursor are not read.
    async fn outbox_retry(&mut self, filter: &OutboxFilter) -> Result<u64, StoreError>;

    // ---- journal ---------------------------------------------------------------------------------

    /// Adds an entry, and drops what is older than the newest [`JOURNAL_ENTRIES`].
    async fn journal_add(&mut self, entry: &JournalEntry) -> Result<(), StoreError>;

    /// The newest entries first; of one key where one is given.
    async fn journal(
        &mut self,
        consumer: ConsumerId,
        key: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<JournalEntry>, StoreError>;
}

impl LedgerPage {
    /// A page that is full ends with its last row; another one where the scan ended.
    pub(super) fn of(records: Vec<LedgerRecord>, limit: u32, scanned: Option<Vec<u8>>) -> Self {
        let full = records.len() as u64 == u64::from(limit);
        let next = match records.last() {
            Some(last) if full => Some(last.key.clone()),
            _ => scanned,
        };
        Self { records, next }
    }
}
