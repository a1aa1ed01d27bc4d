//! The host's side of one running message: what its calls read, what they collect, what is left to it.
//!
//! It lives in the instance's store for one attempt and is taken apart afterwards.

use std::sync::Arc;

use crate::effects::outbox::StoredReply;
use crate::effects::state::StateView;
use crate::effects::{Effects, Fault, Transaction};
use crate::failpoint::{self, Point};
use crate::failure::Failure;
use crate::store::StoreError;

use super::limits::{Processor, Quota, Space};
use super::wasi::Wasi;
use super::{Attempt, Environment};

/// Why a host call does not return to the guest. Travels through the instance as the error of the call.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("{}", .0.message)]
    Failed(Failure),
    #[error("{0}")]
    Spoiled(StoreError),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Failed(failure) => Self::Failed(failure),
            Fault::Spoiled(error) => Self::Spoiled(error),
        }
    }
}

/// One attempt, as the calls of its instance see it.
pub(super) struct Guest {
    pub(super) environment: Arc<Environment>,
    pub(super) attempt: Attempt,
    /// Absent while a component is tried out at load.
    transaction: Option<Transaction>,
    /// A call is waiting for the database: whoever drops it there loses the connection too.
    in_database: bool,
    pub(super) effects: Effects,
    pub(super) state: StateView,
    /// Where among the outgoing messages the answer is.
    pub(super) reply: Option<usize>,
    pub(super) published: u32,
    pub(super) new_ids: u64,
    pub(super) quota: Quota,
    pub(super) space: Space,
    pub(super) processor: Processor,
    pub(super) wasi: Wasi,
}

impl Guest {
    pub(super) fn new(
        environment: Arc<Environment>,
        attempt: Attempt,
        transaction: Option<Transaction>,
    ) -> Self {
        let limits = &environment.limits;
        Self {
            quota: Quota::new(limits),
            space: Space::new(limits),
            processor: Processor::new(limits),
            wasi: Wasi::new(limits),
            environment,
            attempt,
            transaction,
            in_database: false,
            effects: Effects::default(),
            state: StateView::default(),
            reply: None,
            published: 0,
            new_ids: 0,
        }
    }

    /// Does something with the transaction and what the message knows of its state.
    pub(super) async fn in_transaction<T>(
        &mut self,
        act: impl AsyncFnOnce(&mut Transaction, &mut StateView) -> Result<T, Fault>,
    ) -> Result<T, Stop> {
        let Some(transaction) = &mut self.transaction else {
            return Err(Stop::Spoiled(StoreError::Broken(
                "the component calls the database before its `handle` is called".into(),
            )));
        };
        self.in_database = true;
        let answer = act(transaction, &mut self.state).await;
        failpoint::pass_with(Point::MidStatement, &self.attempt.key);
        self.in_database = false;
        Ok(answer?)
    }

    /// What the message asked for, in the form in which it joins its batch.
    pub(super) fn take_effects(&mut self) -> Effects {
        let mut effects = std::mem::take(&mut self.effects);
        effects.state = std::mem::take(&mut self.state).into_writes();
        let reply = self.reply.map(|place| &effects.outbox[place]);
        effects.reply = reply.map(|row| StoredReply::of(row));
        effects
    }

    /// The transaction, unless a dropped call left it in the middle of something.
    pub(super) fn take_transaction(&mut self) -> Option<Transaction> {
        self.transaction.take().filter(|_| !self.in_database)
    }
}
