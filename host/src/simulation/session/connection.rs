//! The connection of a session: what each round trip may cost, and how it is lost.

use std::sync::Arc;

use crate::store::StoreError;

use super::super::database::{Database, Row, Transaction};
use super::{ModelSession, away, over};

impl ModelSession {
    /// A round trip to the server, which may be the last one of this connection.
    pub(super) async fn trip(&mut self) -> Result<(), StoreError> {
        if self.lost {
            return Err(away());
        }
        self.database.faults.round_trip().await;
        let faults = &self.database.faults;
        if faults.is_database_away() || faults.strikes() {
            self.lose();
            return Err(away());
        }
        Ok(())
    }

    /// Begins a statement: in the open transaction, or in one of its own, which the caller ends.
    pub(super) async fn statement(&mut self) -> Result<bool, StoreError> {
        if self.transaction.as_ref().is_some_and(|open| open.dead) {
            return Err(over());
        }
        self.trip().await?;
        let own = self.transaction.is_none();
        if own {
            self.transaction = Some(self.database.begin());
        }
        Ok(own)
    }

    pub(super) fn end(&mut self, own: bool) {
        if own && let Some(transaction) = self.transaction.take() {
            self.database.commit(transaction);
        }
    }

    pub(super) fn open(&mut self) -> &mut Transaction {
        self.transaction
            .as_mut()
            .expect("a statement has begun a transaction")
    }

    pub(super) async fn lock(&mut self, row: &Row, own: bool) -> Result<(), StoreError> {
        let number = self.open().number;
        if self.database.lock(number, row).await {
            return Ok(());
        }
        self.open().dead = true;
        if own && let Some(transaction) = self.transaction.take() {
            self.database.roll_back(&transaction);
        }
        Err(StoreError::LockTimeout(format!("{row:?}")))
    }

    /// The connection is gone; the server finds out later.
    pub(super) fn lose(&mut self) {
        let commits = std::mem::take(&mut self.committing) && self.database.faults.coin();
        self.lose_and(commits);
    }

    /// The connection is gone, and what was open on it ends later: it commits, or is rolled back.
    pub(super) fn lose_and(&mut self, commits: bool) {
        let (name, given_up) = (self.name.clone(), Arc::clone(&self.given_up));
        if let Ok(mut names) = given_up.lock() {
            names.push(name.clone());
        }
        self.leave(commits, move || {
            if let Ok(mut names) = given_up.lock()
                && let Some(place) = names.iter().position(|one| *one == name)
            {
                names.swap_remove(place);
            }
        });
    }

    fn leave(&mut self, commits: bool, ended: impl FnOnce() + Send + 'static) {
        self.lost = true;
        let (transaction, host) = (self.transaction.take(), self.host.take());
        let database = Arc::clone(&self.database);
        let notice = database.faults.notice();
        let end = move |database: &Database| {
            match transaction {
                Some(transaction) if commits => database.commit(transaction),
                Some(transaction) => database.roll_back(&transaction),
                None => {}
            }
            if let Some(host) = host {
                database.announce(host, false);
            }
            ended();
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !notice.is_zero() => drop(runtime.spawn(async move {
                tokio::time::sleep(notice).await;
                end(&database);
            })),
            _ => end(&database),
        }
    }
}

impl Drop for ModelSession {
    fn drop(&mut self) {
        match (self.lost, self.committing) {
            (true, _) => {}
            (false, true) => self.lose(),
            // Closed, not lost: the next of its name does not wait for it.
            (false, false) => self.leave(false, || {}),
        }
    }
}
