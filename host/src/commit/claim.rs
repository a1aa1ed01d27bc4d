//! The first step of a transaction: which messages are new, and which have a fate already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::key::{FINGERPRINT_BYTES, Identity};
use crate::ledger::{Judgement, judge};
use crate::store::{Claim, ClaimRule, Entry, Fate, Session, StoreError};

use super::verdicts::{duplicate, reused};
use super::{Hold, Item, Pass, Plan};
use crate::waiting;

/// What `open` learned of an item.
enum Opened {
    Decided(Plan),
    /// It has a key that has to be claimed.
    Key(Vec<u8>),
    /// Its consumer has switched idempotency off.
    Keyless {
        attempts: i32,
    },
}

/// What a batch has claimed.
pub(super) struct Claimed {
    /// One for each item.
    pub plans: Vec<Plan>,
    /// The keys that are claimed.
    pub keys: Vec<Vec<u8>>,
    /// So many items have to stay in this transaction: it has taken a row over from what stood there before.
    pub run_until: usize,
}

/// A key, and the place of the first item that carries it.
type Place<'a> = (&'a [u8], usize);

pub(super) enum ClaimError {
    Again,
    Store(StoreError),
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Pass<'_> {
    /// Locks the waiting rows, claims the keys, and plans each item.
    pub(super) async fn claim(
        &self,
        session: &mut dyn Session,
        items: &mut [Item],
    ) -> Result<Claimed, ClaimError> {
        let mut plans = Vec::with_capacity(items.len());
        let mut first = BTreeMap::<Vec<u8>, usize>::new();
        // One of them runs in any case.
        let mut run_until = 1;
        for (index, item) in items.iter_mut().enumerate() {
            plans.push(match self.open(session, item).await? {
                Opened::Decided(plan) => {
                    if matches!(
                        plan,
                        Plan::Run { .. } | Plan::Fail { .. } | Plan::ParkedBefore
                    ) {
                        run_until = index + 1;
                    }
                    plan
                }
                Opened::Key(key) => match first.get(&key) {
                    Some(earlier) => Plan::Follow(*earlier),
                    None => {
                        first.insert(key, index);
                        Plan::Run { attempts: 0 }
                    }
                },
                Opened::Keyless { attempts } => match item.hold {
                    Hold::Nothing if item.redelivered && item.preset.is_none() => Plan::SetAside,
                    _ => begin(item, attempts),
                },
            });
        }
        let mut claimed = Claimed {
            keys: self.held_keys(items, &plans, &first),
            plans,
            run_until,
        };
        self.claim_keys(session, items, &mut claimed, first).await?;
        Ok(claimed)
    }

    /// Reads what is needed to know an item's key.
    async fn open(&self, session: &mut dyn Session, item: &mut Item) -> Result<Opened, ClaimError> {
        let mut attempts = 0;
        item.kept = false;
        if let Some(failure) = &item.apart {
            return Ok(Opened::Decided(Plan::ParkApart(failure.clone())));
        }
        if let Hold::Row(id) = &item.hold {
            let Some(row) = session.waiting_lock(self.consumer.id, id).await? else {
                return Ok(Opened::Decided(Plan::Gone));
            };
            attempts = row.attempts;
            item.redelivered = row.code == code::REDELIVERED.0;
            item.message = Arc::new(row.message);
            if let Some(withheld) = row.withheld {
                let text = format!(
                    "what is stored of the message is not one that can run ({})",
                    withheld.encoding
                );
                item.withheld = Some(Box::new(withheld));
                let failure = Failure::never(code::UNREADABLE, text);
                item.identity = Err(failure.clone());
                return Ok(Opened::Decided(Plan::Park(failure)));
            }
            item.identity = self.consumer.rules.identify(&item.message);
            if let Some(key) = row.key {
                // The row remembers its key and its place, so that a change of the consumer's rules cannot
                // give a waiting message others.
                return self
                    .take_waiting(session, item, key, row.fingerprint, row.partition, attempts)
                    .await;
            }
        }
        Ok(match &item.identity {
            Err(failure) => Opened::Decided(Plan::Park(failure.clone())),
            Ok(identity) if identity.key.is_empty() => Opened::Keyless { attempts },
            Ok(identity) => match item.hold {
                Hold::Started(starts) => self.take_started(session, item, identity, starts).await?,
                _ => Opened::Key(identity.key.clone()),
            },
        })
    }

    /// Takes a key over from the row that made it wait.
    async fn take_waiting(
        &self,
        session: &mut dyn Session,
        item: &mut Item,
        key: Vec<u8>,
        fingerprint: Vec<u8>,
        partition: i64,
        attempts: i32,
    ) -> Result<Opened, ClaimError> {
        // A row whose fingerprint was made unknown has the one of its message by the present rule.
        let mut kept = item
            .identity
            .as_ref()
            .map(|identity| identity.fingerprint)
            .unwrap_or([0; FINGERPRINT_BYTES]);
        if fingerprint.len() == kept.len() {
            kept.copy_from_slice(&fingerprint);
        }
        item.identity = Ok(Identity {
            key: key.clone(),
            partition,
            fingerprint: kept,
        });
        item.kept = true;
        let claim = Claim {
            key: &key,
            fingerprint: &fingerprint,
            attempts: attempts.saturating_add(1),
            timestamp_seconds: item.message.timestamp_seconds(),
        };
        if session.take(self.rule(), claim, Fate::Waiting).await? {
            return Ok(Opened::Decided(begin(item, attempts)));
        }
        let entry = session
            .entries(self.consumer.id, &[&key])
            .await?
            .pop()
            .flatten();
        match entry.map(|entry| entry.fate) {
            Some(fate @ (Fate::Committed | Fate::Discarded)) => {
                Ok(Opened::Decided(Plan::Duplicate(fate)))
            }
            // The operator made the ledger forget the key: the message is new again.
            None => Ok(Opened::Key(key)),
            // An operator has made the row due by hand, or another copy of the message has begun meanwhile and has come
            // to no end. Whatever the ledger says, the row is the message, and it is to run.
            Some(fate) => match session.take(self.rule(), claim, fate).await? {
                true => Ok(Opened::Decided(begin(item, attempts))),
                false => Err(ClaimError::Again),
            },
        }
    }

    async fn take_started(
        &self,
        session: &mut dyn Session,
        item: &Item,
        identity: &Identity,
        starts: i32,
    ) -> Result<Opened, ClaimError> {
        let claim = claim_of(item, identity, starts);
        if session.take(self.rule(), claim, Fate::Started).await? {
            let keys = [identity.key.as_slice()];
            let parked = self.parked_before(session, &keys).await?;
            return Ok(Opened::Decided(match parked.is_empty() {
                true => begin(item, starts - 1),
                false => Plan::ParkedBefore,
            }));
        }
        Ok(Opened::Key(identity.key.clone()))
    }

    /// Claims the distinct keys and learns the fate of those that are not new.
    async fn claim_keys(
        &self,
        session: &mut dyn Session,
        items: &[Item],
        claimed: &mut Claimed,
        first: BTreeMap<Vec<u8>, usize>,
    ) -> Result<(), ClaimError> {
        if first.is_empty() {
            return Ok(());
        }
        let Claimed {
            plans,
            keys: owned,
            run_until,
        } = claimed;
        // In the order of their keys.
        let mut unknown = first
            .iter()
            .map(|(key, index)| (key.as_slice(), *index))
            .collect::<Vec<Place<'_>>>();
        let mut known = Vec::new();
        // A look costs less than a claim where most keys are known; for one key it costs the same. What is found has
        // committed, and is judged by that as what is found after a claim is. What is not found may be in another
        // transaction's hands: the claim waits for it.
        if unknown.len() > 1 && self.consumer.meets_duplicates.load(Ordering::Relaxed) {
            let looked = self.entries(session, std::mem::take(&mut unknown)).await?;
            for (place, entry) in looked {
                match entry {
                    Some(entry) => known.push((place, entry)),
                    None => unknown.push(place),
                }
            }
        }
        let claims = unknown
            .iter()
            .filter_map(|&(_, index)| {
                let identity = items[index].identity.as_ref().ok()?;
                Some(claim_of(&items[index], identity, 1))
            })
            .collect::<Vec<_>>();
        let new = match claims.is_empty() {
            true => Vec::new(),
            false => session.claim(self.rule(), &claims).await?,
        };
        failpoint::pass(Point::MidClaim);
        let claimed = unknown
            .iter()
            .zip(&new)
            .filter(|&(&(_, index), new)| *new && self.looks_for_parked(&items[index]))
            .map(|((key, _), _)| *key)
            .collect::<Vec<_>>();
        let parked = self.parked_before(session, &claimed).await?;
        let mut others = Vec::new();
        for (place @ (key, index), new) in unknown.into_iter().zip(new) {
            if new {
                plans[index] = begin(&items[index], 0);
                if parked.contains(key) {
                    plans[index] = Plan::ParkedBefore;
                    *run_until = (*run_until).max(index + 1);
                }
                owned.push(key.to_vec());
            } else {
                others.push(place);
            }
        }
        if !others.is_empty() {
            for (place, entry) in self.entries(session, others).await? {
                // Neither new nor visible: its transaction was rolled back between the two statements.
                known.push((place, entry.ok_or(ClaimError::Again)?));
            }
        }
        let mostly = 2 * known.len() > first.len();
        self.consumer
            .meets_duplicates
            .store(mostly, Ordering::Relaxed);
        for ((key, index), entry) in known {
            let item = &items[index];
            let Ok(identity) = &item.identity else {
                continue;
            };
            let judged = judge(&entry, &identity.fingerprint);
            if !matches!(judged, Judgement::TakeOver) {
                // What came before the batch judges its followers too, not the one that stands before them.
                self.judge_followers(&entry, items, plans, index);
            }
            plans[index] = match judged {
                Judgement::Duplicate(fate) => self.duplicate(item, key, fate),
                Judgement::Reused(fate) => Plan::Park(reused(key, fate)),
                Judgement::TakeOver => {
                    let claim = claim_of(item, identity, entry.attempts);
                    if !session.take(self.rule(), claim, Fate::Started).await? {
                        return Err(ClaimError::Again);
                    }
                    owned.push(key.to_vec());
                    *run_until = (*run_until).max(index + 1);
                    let parked = match self.looks_for_parked(item) {
                        true => self.parked_before(session, &[key]).await?,
                        false => BTreeSet::new(),
                    };
                    match parked.is_empty() {
                        true => begin(item, (entry.attempts - 1).max(0)),
                        false => Plan::ParkedBefore,
                    }
                }
            };
        }
        Ok(())
    }

    /// What the ledger says of keys.
    async fn entries<'a>(
        &self,
        session: &mut dyn Session,
        places: Vec<Place<'a>>,
    ) -> Result<Vec<(Place<'a>, Option<Entry>)>, ClaimError> {
        let keys = places.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let entries = session.entries(self.consumer.id, &keys).await?;
        Ok(places.into_iter().zip(entries).collect())
    }

    /// Judges the items of the batch that carry the same key as `first`, each by its own fingerprint.
    fn judge_followers(&self, entry: &Entry, items: &[Item], plans: &mut [Plan], first: usize) {
        for (item, plan) in items.iter().zip(plans) {
            let (Plan::Follow(earlier), Ok(identity)) = (&*plan, &item.identity) else {
                continue;
            };
            if *earlier == first {
                *plan = match judge(entry, &identity.fingerprint) {
                    Judgement::Reused(fate) => Plan::Park(reused(&identity.key, fate)),
                    Judgement::Duplicate(fate) => self.duplicate(item, &identity.key, fate),
                    Judgement::TakeOver => continue,
                };
            }
        }
    }

    /// Whether a message may have been parked while a session that does not end had its key: it comes for another
    /// time, or keys are known to lack that fate.
    fn looks_for_parked(&self, item: &Item) -> bool {
        item.redelivered || item.put_off || self.consumer.owes_fates.load(Ordering::Relaxed)
    }

    /// Those of these keys whose messages were parked while a session that did not end had them.
    async fn parked_before(
        &self,
        session: &mut dyn Session,
        keys: &[&[u8]],
    ) -> Result<BTreeSet<Vec<u8>>, StoreError> {
        if keys.is_empty() {
            return Ok(BTreeSet::new());
        }
        let ids = keys
            .iter()
            .map(|key| waiting::key_id(&self.consumer.name, key));
        let ids = ids.collect::<Vec<_>>();
        let parked = session.parked_apart(self.consumer.id, &ids).await?;
        let all = ids.iter().zip(keys);
        let known = all.filter(|(id, _)| parked.contains(id));
        Ok(known.map(|(_, key)| key.to_vec()).collect())
    }

    fn duplicate(&self, item: &Item, key: &[u8], fate: Fate) -> Plan {
        if self.parks_duplicate(item) {
            return Plan::Park(duplicate(key, fate));
        }
        Plan::Duplicate(fate)
    }

    /// The keys that `open` has taken already.
    fn held_keys(
        &self,
        items: &[Item],
        plans: &[Plan],
        first: &BTreeMap<Vec<u8>, usize>,
    ) -> Vec<Vec<u8>> {
        let mut held = keys_of(items, plans);
        held.retain(|key| !first.contains_key(key));
        held
    }

    fn rule(&self) -> ClaimRule<'_> {
        ClaimRule {
            consumer: self.consumer.id,
            plugin: &self.plugin.digest()[..8],
            retention: self.consumer.retention,
        }
    }
}

/// The keys that are claimed for items with these plans.
pub(super) fn keys_of(items: &[Item], plans: &[Plan]) -> Vec<Vec<u8>> {
    items
        .iter()
        .zip(plans)
        .filter(|(_, plan)| {
            matches!(
                plan,
                Plan::Run { .. } | Plan::Fail { .. } | Plan::ParkedBefore
            )
        })
        .filter_map(|(item, _)| item.identity.as_ref().ok())
        .filter(|identity| !identity.key.is_empty())
        .map(|identity| identity.key.clone())
        .collect()
}

/// An item whose key is claimed: it runs, unless it has failed before. What came too late was no attempt.
fn begin(item: &Item, attempts: i32) -> Plan {
    match &item.preset {
        Some(failure) => Plan::Fail {
            failure: failure.clone(),
            attempts: attempts.saturating_add(i32::from(failure.code != code::TOO_LATE)),
        },
        None => Plan::Run { attempts },
    }
}

fn claim_of<'a>(item: &'a Item, identity: &'a Identity, attempts: i32) -> Claim<'a> {
    Claim {
        key: &identity.key,
        fingerprint: &identity.fingerprint,
        attempts,
        timestamp_seconds: item.message.timestamp_seconds(),
    }
}
