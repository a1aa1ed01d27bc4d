//! Strict order: a message whose partition has a failed one before it is put behind that one.
//!
//! The line of a partition are its rows in `hapax_waiting`, in the order of their arrival. The first of them
//! runs, or waits for its retry or for a person; the others are held. Whoever adds to a line has its first row
//! locked, and so has whoever takes it away: nothing is put behind a row that has gone.

use std::collections::HashMap;

use crate::config::Order;
use crate::failure::code;
use crate::store::Session;

use super::claim::ClaimError;
use super::{Item, Pass, Plan, Setback};

/// The lines that a batch meets. Empty for a consumer that has none.
pub(super) struct Lines {
    /// How many may be held in each; `None` without strict order.
    max_held: Option<u64>,
    /// How many are held in each that there is.
    held: HashMap<i64, u64>,
}

impl Pass<'_> {
    /// Reads the lines of the batch's partitions, after its keys are claimed: whoever failed before a message
    /// of this batch has said so by then.
    pub(super) async fn lines(
        &self,
        session: &mut dyn Session,
        items: &[Item],
        plans: &[Plan],
    ) -> Result<Lines, ClaimError> {
        let Order::Strict { max_held } = self.consumer.order else {
            return Ok(Lines {
                max_held: None,
                held: HashMap::new(),
            });
        };
        let mut partitions = items
            .iter()
            .zip(plans)
            .filter(|(item, plan)| joins(item, plan))
            .filter_map(|(item, _)| partition(item))
            .collect::<Vec<_>>();
        partitions.sort_unstable();
        partitions.dedup();
        let lines = match partitions.is_empty() {
            true => Vec::new(),
            false => session.waiting_lines(self.consumer.id, &partitions).await?,
        };
        Ok(Lines {
            max_held: Some(u64::from(max_held)),
            held: lines.into_iter().collect(),
        })
    }
}

impl Lines {
    /// What the lines make of a plan.
    pub(super) fn place(&mut self, item: &Item, plan: Plan) -> Result<Plan, Setback> {
        let (Some(max_held), true, Some(partition)) =
            (self.max_held, joins(item, &plan), partition(item))
        else {
            return Ok(plan);
        };
        match self.held.get_mut(&partition) {
            None => Ok(plan),
            Some(held) if *held < max_held => {
                *held += 1;
                Ok(Plan::Hold)
            }
            Some(_) => Err(Setback::Full),
        }
    }

    /// A message that has failed begins a line.
    pub(super) fn note(&mut self, item: &Item, result: &Plan) {
        if let (Some(_), Plan::Fail { .. }, Some(partition)) =
            (self.max_held, result, partition(item))
        {
            self.held.entry(partition).or_insert(0);
        }
    }
}

/// Whether a message has to stand in line. The first of a line has stood; and what is too late for the ledger
/// waits for a person, whatever runs before it.
fn joins(item: &Item, plan: &Plan) -> bool {
    match plan {
        _ if item.kept => false,
        Plan::Run { .. } => true,
        Plan::Fail { failure, .. } => failure.code != code::TOO_LATE,
        _ => false,
    }
}

fn partition(item: &Item) -> Option<i64> {
    let identity = item.identity.as_ref().ok()?;
    (!identity.key.is_empty()).then_some(identity.partition)
}
