//! The ledger as an operator handles it: the fate of a key, making it forget, teaching it keys.
//!
//! Forgetting makes a message new again, so it is done for named keys only, with a reason, and never to a
//! key whose message waits. What a committed message sent had ids that its consumers remember; the ids of
//! the next run have another generation, and a key is forgotten only when every host makes such ids.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::config::{self, Idempotency, Retention};
use crate::failpoint::{self, Point};
use crate::key::MAX_KEY_BYTES;
use crate::store::{
    ClaimRule, ConsumerId, Fate, JournalEntry, LedgerRecord, Mark, Session, WaitingFilter,
};

use super::parked::{self, Entry};
use super::{OperationError, Operations, fate_name, fate_of, key_bytes, time};

/// Rows of the ledger that one look passes over.
const SCAN_ROWS: u32 = 20_000;

/// Looks that one request for a list takes: it answers, with where to go on, before anybody grows tired.
const LOOKS: u32 = 25;

/// How long hosts may take to note a new generation. They look every second.
const NOTE_PATIENCE: Duration = Duration::from_secs(15);

/// Generations that a host can lag behind.
const OLD_GENERATIONS: i32 = 32;

/// Entries of the journal in what is told of a key.
const JOURNAL_ROWS: u32 = 20;

/// What the ledger knows of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub consumer: String,
    /// Where it is text.
    pub key: Option<String>,
    pub key_hex: String,
    /// `committed`, `waiting`, `parked`, `discarded` or `started`.
    pub fate: String,
    pub attempts: i32,
    /// Hexadecimal; empty when it is not known.
    pub fingerprint: String,
    /// The first 16 digits of the component's SHA-256; empty when none ran.
    pub plugin: String,
    /// RFC 3339, UTC; absent when it is remembered forever.
    pub expires_at: Option<String>,
    /// Base64.
    pub reply: Option<String>,
}

/// Everything that is known of a key of one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerShown {
    pub entry: Option<LedgerEntry>,
    /// Its failed message.
    pub waiting: Option<Entry>,
    /// What operators did to it, the newest first.
    pub journal: Vec<Note>,
    pub consumer: String,
}

/// What an operator did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub at: String,
    pub who: String,
    pub action: String,
    pub why: String,
}

/// Which rows to list, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerQuery {
    pub consumer: String,
    pub fate: Option<String>,
    /// Keys after this one.
    pub after_hex: Option<String>,
    pub limit: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRows {
    pub entries: Vec<LedgerEntry>,
    /// Where to go on; absent at the end.
    pub next_hex: Option<String>,
}

/// Keys to forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    pub consumer: String,
    pub keys_hex: Vec<String>,
    pub who: String,
    pub why: String,
    pub dry_run: bool,
}

/// What became of a key that was to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    pub key_hex: String,
    /// Its fate before; absent when the ledger did not know it.
    pub fate: Option<String>,
    pub forgotten: bool,
}

/// A block of keys to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub consumer: String,
    pub keys: Vec<ImportKey>,
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImportKey {
    pub key_hex: String,
    /// Empty when the payload is not known.
    pub fingerprint_hex: String,
}

/// How many keys of a block the ledger did not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub new: u64,
    pub known: u64,
}

impl Operations {
    /// A key of one consumer, or of all of them.
    pub(super) async fn ledger_show(
        &self,
        session: &mut dyn Session,
        consumer: Option<&str>,
        key_hex: &str,
    ) -> Result<Vec<LedgerShown>, OperationError> {
        self.known_consumer(consumer)?;
        let key = key_bytes(key_hex)?;
        let mut shown = Vec::new();
        for configured in &self.config.consumers {
            if consumer.is_some_and(|wanted| wanted != configured.name) {
                continue;
            }
            let id = self.consumer_id(session, configured).await?;
            let found = session.upkeep().ledger_find(id, &[&key]).await?;
            let waiting = session
                .waiting_list(&WaitingFilter {
                    consumer: Some(configured.name.clone()),
                    key: Some(key.clone()),
                    without_bodies: true,
                    limit: 1,
                    ..WaitingFilter::default()
                })
                .await?;
            let journal = session
                .upkeep()
                .journal(id, Some(&key), JOURNAL_ROWS)
                .await?;
            shown.push(LedgerShown {
                entry: found
                    .into_iter()
                    .flatten()
                    .next()
                    .map(|record| entry(&configured.name, &record)),
                waiting: waiting.first().map(parked::entry),
                journal: journal
                    .into_iter()
                    .map(|entry| Note {
                        at: time(entry.at),
                        who: entry.actor,
                        action: entry.action,
                        why: entry.why,
                    })
                    .collect(),
                consumer: configured.name.clone(),
            });
        }
        Ok(shown)
    }

    pub(super) async fn ledger_list(
        &self,
        session: &mut dyn Session,
        query: &LedgerQuery,
    ) -> Result<LedgerRows, OperationError> {
        let consumer = self.configured(&query.consumer)?;
        let id = self.consumer_id(session, consumer).await?;
        let fate = query.fate.as_deref().map(fate_of).transpose()?;
        let mut next = Some(match &query.after_hex {
            Some(digits) => key_bytes(digits)?,
            None => Vec::new(),
        });
        let mut entries = Vec::new();
        for _ in 0..LOOKS {
            let missing = query.limit.saturating_sub(entries.len() as u32);
            let Some(after) = next.take_if(|_| missing > 0) else {
                break;
            };
            let page = session
                .upkeep()
                .ledger_page(id, fate, &after, SCAN_ROWS, missing)
                .await?;
            entries.extend(
                page.records
                    .iter()
                    .map(|record| entry(&consumer.name, record)),
            );
            next = page.next;
        }
        Ok(LedgerRows {
            entries,
            next_hex: next.map(hex::encode),
        })
    }

    pub(super) async fn ledger_forget(
        &self,
        session: &mut dyn Session,
        forget: &Forget,
    ) -> Result<Vec<Forgotten>, OperationError> {
        if forget.why.trim().is_empty() {
            return Err(OperationError::Refused(
                "forgetting a key needs a reason".to_owned(),
            ));
        }
        let consumer = self.configured(&forget.consumer)?;
        let id = self.consumer_id(session, consumer).await?;
        let mut keys = forget
            .keys_hex
            .iter()
            .map(|digits| key_bytes(digits))
            .collect::<Result<Vec<_>, _>>()?;
        keys.sort();
        keys.dedup();
        let keys = keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let found = session.upkeep().ledger_find(id, &keys).await?;
        refuse_waiting(&found)?;
        let mut told = keys
            .iter()
            .zip(&found)
            .map(|(key, record)| Forgotten {
                key_hex: hex::encode(key),
                fate: record
                    .as_ref()
                    .map(|known| fate_name(known.fate).to_owned()),
                forgotten: false,
            })
            .collect::<Vec<_>>();
        let known = found.into_iter().flatten().collect::<Vec<_>>();
        if forget.dry_run || known.is_empty() {
            return Ok(told);
        }
        // Only what was committed has sent messages.
        if known.iter().any(|record| record.fate == Fate::Committed) {
            self.new_generation(session, id, &consumer.name).await?;
        }
        for record in &known {
            let entry = JournalEntry {
                at: 0,
                actor: forget.who.clone(),
                action: "forget".to_owned(),
                consumer: Some(id),
                key: Some(record.key.clone()),
                why: forget.why.clone(),
            };
            self.note(session, entry).await?;
        }
        let keys = known
            .iter()
            .map(|record| record.key.as_slice())
            .collect::<Vec<_>>();
        let forgotten = session.upkeep().ledger_forget(id, &keys).await?;
        failpoint::pass(Point::AfterForget);
        for gone in forgotten {
            let gone = hex::encode(gone);
            for key in told.iter_mut().filter(|key| key.key_hex == gone) {
                key.forgotten = true;
            }
        }
        Ok(told)
    }

    /// Raises the generation, and waits until no host works by an earlier one.
    async fn new_generation(
        &self,
        session: &mut dyn Session,
        id: ConsumerId,
        name: &str,
    ) -> Result<(), OperationError> {
        let generation = session.upkeep().raise_generation(id).await?;
        failpoint::pass(Point::AfterGeneration);
        let started = Instant::now();
        for old in (generation - OLD_GENERATIONS).max(0)..generation {
            let mark = Mark::Generation(id, old);
            while session.upkeep().mark_holders(mark).await? > 0 {
                if started.elapsed() > NOTE_PATIENCE {
                    return Err(OperationError::Unavailable(format!(
                        "a host of {name} has not taken note within {} seconds; nothing was forgotten: look \
                         for a host that hangs, and try again",
                        NOTE_PATIENCE.as_secs()
                    )));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    pub(super) async fn ledger_import(
        &self,
        session: &mut dyn Session,
        import: &Import,
    ) -> Result<Imported, OperationError> {
        let consumer = self.configured(&import.consumer)?;
        if consumer.idempotency == Idempotency::Off {
            return Err(OperationError::Refused(format!(
                "the consumer {} has `idempotency = \"off\"`: it has no keys",
                consumer.name
            )));
        }
        let mut keys = Vec::with_capacity(import.keys.len());
        for given in &import.keys {
            let key = key_bytes(&given.key_hex)?;
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(OperationError::Refused(format!(
                    "a key has {} bytes; 1 to {MAX_KEY_BYTES} are allowed",
                    key.len()
                )));
            }
            keys.push((key, key_bytes(&given.fingerprint_hex)?));
        }
        keys.sort();
        keys.dedup_by(|a, b| a.0 == b.0);
        let id = self.consumer_id(session, consumer).await?;
        let doubled = import.keys.len() - keys.len();
        let new = if import.dry_run {
            let keys = keys.iter().map(|(key, _)| key.as_slice());
            let entries = session.entries(id, &keys.collect::<Vec<_>>()).await?;
            entries.iter().filter(|entry| entry.is_none()).count() as u64
        } else {
            let retention = retention(consumer);
            if let Some(retention) = retention {
                session.note_retention(id, retention).await?;
            }
            let rule = ClaimRule {
                consumer: id,
                plugin: b"",
                retention,
            };
            let keys = keys
                .iter()
                .map(|(key, fingerprint)| (key.as_slice(), fingerprint.as_slice()))
                .collect::<Vec<_>>();
            failpoint::pass(Point::BeforeImport);
            let new = session.upkeep().ledger_import(rule, &keys).await?;
            failpoint::pass(Point::AfterImport);
            new
        };
        Ok(Imported {
            new,
            known: (keys.len() as u64).saturating_sub(new) + doubled as u64,
        })
    }

    /// Writes into the journal that an import has ended.
    pub(super) async fn imported(
        &self,
        session: &mut dyn Session,
        consumer: &str,
        who: &str,
        what: &str,
    ) -> Result<(), OperationError> {
        let consumer = self.configured(consumer)?;
        let id = self.consumer_id(session, consumer).await?;
        let entry = JournalEntry {
            at: 0,
            actor: who.to_owned(),
            action: "import".to_owned(),
            consumer: Some(id),
            key: None,
            why: what.to_owned(),
        };
        self.note(session, entry).await
    }
}

fn retention(consumer: &config::Consumer) -> Option<Duration> {
    match consumer.retention {
        Retention::For(duration) => Some(duration),
        Retention::Forever => None,
    }
}

/// A message that waits has a way to its end, which goes through its row.
fn refuse_waiting(found: &[Option<LedgerRecord>]) -> Result<(), OperationError> {
    let problems = found
        .iter()
        .flatten()
        .filter_map(|record| {
            let show = crate::key::show(&record.key);
            match record.fate {
                Fate::Waiting => Some(format!(
                    "the message of {show} waits for its retry, and the host runs it by itself"
                )),
                Fate::Parked => Some(format!(
                    "the message of {show} is parked: `hapax parked replay` runs it again"
                )),
                _ => None,
            }
        })
        .collect::<Vec<_>>();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(OperationError::Refused(problems.join("\n")))
    }
}

fn entry(consumer: &str, record: &LedgerRecord) -> LedgerEntry {
    LedgerEntry {
        consumer: consumer.to_owned(),
        key: String::from_utf8(record.key.clone()).ok(),
        key_hex: hex::encode(&record.key),
        fate: fate_name(record.fate).to_owned(),
        attempts: record.attempts,
        fingerprint: hex::encode(&record.fingerprint),
        plugin: hex::encode(&record.plugin),
        expires_at: record.expires_at.map(time),
        reply: record.reply.as_ref().map(|reply| STANDARD.encode(reply)),
    }
}
