//! The session of a lane, and its pauses while the store fails.

use std::sync::Arc;

use crate::backoff::Backoff;
use crate::consumer::Consumer;
use crate::store::{Claim, ClaimRule, Session, StoreError, StuckSession};

use super::{Lane, Stopped};

impl Lane {
    /// The session of the lane, opened when there is none.
    pub(super) async fn connect(&mut self) -> Result<&mut dyn Session, StoreError> {
        if self.session.is_none() {
            let name = self.consumer.session_name(self.number);
            let session = self.consumer.store.session(&name).await?;
            if let Some(stuck) = session.stuck_before() {
                self.stuck_before = Some(stuck);
            }
            self.session = Some(session);
        }
        match &mut self.session {
            Some(session) => Ok(&mut **session),
            None => Err(StoreError::Unavailable("the lane has no session".into())),
        }
    }

    /// Opens a session after one was lost in a statement of a handler, and says whether that one was left behind.
    /// `None` also when the lane is to stop.
    pub(super) async fn look_behind(&mut self) -> Option<StuckSession> {
        let mut trouble = Backoff::for_servers();
        loop {
            match self.connect().await {
                Ok(_) => return self.stuck_before.take(),
                Err(error) => self.pause(&mut trouble, &error).await.ok()?,
            }
        }
    }

    /// Asks the database to claim a key, which a batch needs of it, and rolls that back. True when it worked.
    pub(super) async fn answers(&mut self) -> bool {
        let consumer = Arc::clone(&self.consumer);
        let answer = match self.connect().await {
            Ok(session) => claims(session, &consumer).await,
            Err(error) => Err(error),
        };
        if answer.is_err() {
            self.session = None;
        }
        answer.is_ok()
    }

    /// Waits before the next try, and warns once when tries go on failing.
    pub(super) async fn pause(
        &mut self,
        trouble: &mut Backoff,
        error: &StoreError,
    ) -> Result<(), Stopped> {
        if matches!(
            error,
            StoreError::Unavailable(_)
                | StoreError::Unanswered(_)
                | StoreError::Unwritable(_)
                | StoreError::InDoubt(_)
        ) {
            self.session = None;
        }
        if trouble.tries() == 2 {
            let what = match error {
                StoreError::LockTimeout(_) | StoreError::Conflict(_) => {
                    "Another transaction is in the way"
                }
                StoreError::Unwritable(_) => "The store cannot write",
                _ => "The store does not answer",
            };
            tracing::warn!(
                consumer = %self.consumer.name, lane = self.number, %error,
                "{what}; messages are held and tried again"
            );
        }
        let pulse = self.consumer.pulse(self.number);
        pulse.rest();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            () = tokio::time::sleep(trouble.pause()) => {
                pulse.beat();
                Ok(())
            }
        }
    }
}

async fn claims(session: &mut dyn Session, consumer: &Consumer) -> Result<(), StoreError> {
    let rule = ClaimRule {
        consumer: consumer.id,
        plugin: &[],
        retention: consumer.retention,
    };
    let key = fastrand::u128(..).to_be_bytes();
    let claim = Claim {
        key: &key,
        fingerprint: &[],
        attempts: 1,
        timestamp_seconds: None,
    };
    session.begin().await?;
    let claimed = session.claim(rule, &[claim]).await;
    session.rollback().await?;
    claimed.map(|_| ())
}
