//! The fence: a message that is older than what the ledger remembers may have been applied, and is parked.
//!
//! Looked at last, by the horizon that `finish` read: the claim came before it, so a sweep that made the key
//! new again shows in it. The rare batch that has such a message in it runs again.

use crate::failure::{Failure, code};

use super::{Item, Pass, Plan};

impl Pass<'_> {
    /// The items whose keys were new to the ledger, or of which it knew no more than a start.
    pub(super) fn fresh(&self, items: &[Item], results: &[Plan]) -> Vec<usize> {
        if self.consumer.retention.is_none() {
            return Vec::new();
        }
        let fresh = items.iter().zip(results).map(|(item, result)| {
            let claimed = matches!(
                result,
                Plan::Run { .. } | Plan::Ran { .. } | Plan::Fail { .. } | Plan::Hold
            );
            let keyed = matches!(&item.identity, Ok(identity) if !identity.key.is_empty());
            let marked = matches!(&item.preset, Some(failure) if failure.code == code::TOO_LATE);
            claimed && keyed && !item.kept && !marked
        });
        (0..)
            .zip(fresh)
            .filter_map(|(index, fresh)| fresh.then_some(index))
            .collect()
    }
}

/// Marks those that are too late; true when there are any.
pub(super) fn mark(items: &mut [Item], fresh: &[usize], horizon: Option<i64>) -> bool {
    let Some(horizon) = horizon else {
        return false;
    };
    let mut found = false;
    for &index in fresh {
        let item = &mut items[index];
        let sent = item.message.timestamp_seconds();
        // Without a timestamp there is nothing to go by.
        if sent.is_some_and(|sent| sent.saturating_mul(1_000_000) <= horizon) {
            item.preset = Some(Failure::never(
                code::TOO_LATE,
                "sent before everything that the ledger remembers for sure: it may have been applied, and \
                 its key forgotten since",
            ));
            found = true;
        }
    }
    found
}
