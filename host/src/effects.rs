//! What a handler asks for while it runs, and the transaction that it is asked in.
//!
//! Effects are plain, bounded data: deferred statements, state writes, outgoing messages. They act only
//! when [`Transaction::flush`] and the commit write them. Statements that want an answer run at once, on
//! the connection of the batch, between savepoints where a failure has to be undone alone; those whose answer is known
//! beforehand run with their neighbours (`sql/speculation.rs`).
//!
//! Nothing here commits, and nothing here decides what becomes of a failed message.

pub mod outbox;
pub mod sql;
pub mod state;

use std::sync::Arc;

use crate::failure::{Class, Failure, code};
use crate::store::{
    CatalogAnswer, CatalogQuestion, Constraint, ConsumerId, NamedColumn, OutboxRow, Rows, Session,
    StoreError, Traits, Value,
};

use outbox::StoredReply;
use sql::rules::Statement;
use sql::{AtWork, Deferred};
use state::StateWrite;

/// The savepoint around one message, and the one around one statement of it.
const MESSAGE: &str = "hapax_message";
const STATEMENT: &str = "hapax_statement";

/// What one message, or the messages of a batch in their order, asked for.
#[derive(Default, Debug)]
pub struct Effects {
    pub deferred: Vec<Deferred>,
    pub state: Vec<StateWrite>,
    pub outbox: Vec<Arc<OutboxRow>>,
    /// The answer of one message. It does not join those of a batch.
    pub reply: Option<StoredReply>,
}

impl Effects {
    /// Adds what a later message asked for.
    pub fn append(&mut self, mut later: Effects) {
        self.deferred.append(&mut later.deferred);
        self.state.append(&mut later.state);
        self.outbox.append(&mut later.outbox);
    }
}

/// How a batch keeps a failing message apart from its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// No savepoints: free while all goes well. A failure that has touched the database spoils the batch. Plain
    /// inserts of a batch are taken to succeed, and run with their neighbours.
    Optimistic,
    /// A savepoint around each message that touches the database, and around each of its statements
    /// where an error kills the transaction.
    Savepoints,
}

/// Why a host call did not return to the guest.
#[derive(Debug)]
pub enum Fault {
    /// The message has failed.
    Failed(Failure),
    /// The transaction cannot go on: the whole batch is rolled back and runs again.
    Spoiled(StoreError),
}

/// What can be done about a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    Undone,
    /// What it did cannot be undone without what the messages before it did, which is the price of having set no
    /// savepoint.
    Entangled,
    /// It was given answers that the database would not have given: with the right ones it may not fail.
    Unproven,
}

/// The transaction of one batch, as the running message sees it.
pub struct Transaction {
    pub session: Box<dyn Session>,
    traits: Traits,
    consumer: ConsumerId,
    isolation: Isolation,
    /// What earlier messages of the batch asked for and nobody has written yet.
    earlier: Effects,
    /// Messages for the outbox, of this batch so far. They are written with the commit.
    outgoing: Vec<Arc<OutboxRow>>,
    /// Plain inserts are answered before they run.
    speculates: bool,
    /// One of this transaction was.
    speculated: bool,
    /// Those of the running message that have not run yet, in order.
    answered: Vec<Deferred>,
    /// The running message has used the connection.
    touched: bool,
    /// The running message has run a statement since its savepoint was set.
    wrote: bool,
    /// The place of the running message in its batch.
    place: usize,
    at_work: AtWork,
    /// Savepoints that were set. A released one still counts for the server: what it wrote has a number of its
    /// own until the transaction ends.
    savepoints: usize,
}

impl Transaction {
    /// Wraps a session whose transaction has begun and whose claims are made. A message that is `alone` has no
    /// neighbours to share a statement with.
    pub fn new(
        session: Box<dyn Session>,
        traits: Traits,
        consumer: ConsumerId,
        isolation: Isolation,
        alone: bool,
    ) -> Self {
        Self {
            session,
            traits,
            consumer,
            isolation,
            earlier: Effects::default(),
            outgoing: Vec::new(),
            speculates: isolation == Isolation::Optimistic && !alone,
            speculated: false,
            answered: Vec::new(),
            touched: false,
            wrote: false,
            place: 0,
            at_work: AtWork::default(),
            savepoints: 0,
        }
    }

    /// Whose statement the database is at, also when this transaction is lost.
    pub fn at_work(&self) -> AtWork {
        self.at_work.clone()
    }

    /// The message at this place of the batch runs next.
    pub fn run_next(&mut self, place: usize) {
        self.place = place;
    }

    /// The place of the first of these names that is no column.
    pub async fn missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, Fault> {
        self.before_statement().await?;
        let answer = self.session.missing_column(columns).await;
        match self.after_statement(answer).await? {
            Ok(place) => Ok(place),
            Err(constraint) => Err(Fault::Spoiled(StoreError::Broken(format!(
                "looking for columns: {}",
                constraint.message
            )))),
        }
    }

    /// What the catalog says about the names of a statement.
    pub async fn catalog(&mut self, question: &CatalogQuestion) -> Result<CatalogAnswer, Fault> {
        self.before_statement().await?;
        let answer = self.session.catalog(question).await;
        match self.after_statement(answer).await? {
            Ok(answer) => Ok(answer),
            Err(constraint) => Err(Fault::Spoiled(StoreError::Broken(format!(
                "looking into the catalog: {}",
                constraint.message
            )))),
        }
    }

    /// Whether a guest was told what a statement touches before the statement ran: what is refused then may have
    /// been for that guest to hear.
    pub fn has_speculated(&self) -> bool {
        self.speculated
    }

    /// Whether it has set as many savepoints as one transaction should.
    pub fn is_full(&self) -> bool {
        self.savepoints >= self.traits.max_savepoints
    }

    /// Runs a statement of the guest and returns its rows. The inner error is the guest's to see.
    pub async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Result<Rows, Constraint>, Fault> {
        self.before_statement().await?;
        let answer = self
            .session
            .query(statement, parameters, max_rows, max_bytes)
            .await;
        self.after_statement(answer).await
    }

    /// Runs a statement of the guest, or will have run it when anything can tell, and returns how many rows it
    /// touched.
    pub async fn execute(
        &mut self,
        statement: Arc<Statement>,
        parameters: Vec<Value>,
    ) -> Result<Result<u64, Constraint>, Fault> {
        if self.can_wait(&statement).await? {
            self.speculated = true;
            self.answered.push(Deferred {
                statement,
                parameters,
                answered: true,
                place: self.place,
            });
            return Ok(Ok(1));
        }
        self.before_statement().await?;
        let answer = self.session.execute(&statement.text, &parameters).await;
        self.after_statement(answer).await
    }

    /// Whether a statement may be answered before it runs.
    async fn can_wait(&mut self, statement: &Statement) -> Result<bool, Fault> {
        let Some(table) = sql::target(statement).filter(|_| self.speculates) else {
            return Ok(false);
        };
        if let Some(plain) = statement.plainness.known() {
            return Ok(plain);
        }
        self.before_statement().await?;
        let answer = self.session.is_plain(table.schema.as_deref(), &table.name);
        let answer = answer.await;
        match self.after_statement(answer).await {
            Ok(answer) => {
                let plain = answer.unwrap_or(false);
                statement.plainness.note(plain);
                Ok(plain)
            }
            // It was not the guest who asked.
            Err(Fault::Failed(failure)) => {
                Err(Fault::Spoiled(StoreError::TransactionLost(failure.message)))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Reads a state key as the transaction sees it, the writes of earlier messages included.
    pub async fn state_get(&mut self, key: &str) -> Result<Option<(Vec<u8>, u64)>, Fault> {
        self.before_statement().await?;
        let answer = self
            .session
            .state_get(self.consumer, key)
            .await
            .map_err(StoreError::ours);
        match self.after_statement(answer).await? {
            Ok(entry) => Ok(entry),
            Err(constraint) => Err(Fault::Spoiled(StoreError::Broken(format!(
                "reading state: {}",
                constraint.message
            )))),
        }
    }

    /// The running message succeeded: its effects join those of the batch.
    pub async fn keep(&mut self, mut effects: Effects) -> Result<(), StoreError> {
        if self.touched && self.isolation == Isolation::Savepoints {
            self.session.release(MESSAGE).await?;
        }
        self.outgoing.append(&mut effects.outbox);
        for deferred in &mut effects.deferred {
            deferred.place = self.place;
        }
        self.earlier.deferred.append(&mut self.answered);
        self.earlier.append(effects);
        self.touched = false;
        self.wrote = false;
        Ok(())
    }

    /// The running message failed: what it did is undone, where that can be.
    pub async fn discard(&mut self) -> Result<Discarded, StoreError> {
        if !self.answered.is_empty() {
            // Running it again would tell, too, and may take as long as it has taken.
            match self.write_answered().await {
                Err(error) if error.class() == Class::Message => return Ok(Discarded::Unproven),
                proven => proven?,
            }
        }
        let touched = std::mem::take(&mut self.touched);
        self.wrote = false;
        if !touched {
            return Ok(Discarded::Undone);
        }
        if self.isolation == Isolation::Optimistic {
            return Ok(Discarded::Entangled);
        }
        self.session.rollback_to(MESSAGE).await?;
        Ok(Discarded::Undone)
    }

    /// Writes what the messages so far have collected, in few statements and in their order.
    pub async fn flush(&mut self) -> Result<(), StoreError> {
        let effects = std::mem::take(&mut self.earlier);
        let at_work = &self.at_work;
        sql::write(&mut *self.session, &self.traits, &effects.deferred, at_work).await?;
        at_work.unset();
        state::write(&mut *self.session, self.consumer, &effects.state).await
    }

    /// The batch's outgoing messages, in order. Empty afterwards.
    pub fn take_outgoing(&mut self) -> Vec<Arc<OutboxRow>> {
        std::mem::take(&mut self.outgoing)
    }

    /// Everything that must stand before a guest's statement: the effects of earlier messages, written
    /// outside of this message's savepoint, because a rollback to it must not take them along, and what this
    /// message takes for done.
    async fn before_statement(&mut self) -> Result<(), Fault> {
        if !self.touched {
            self.flush().await.map_err(Fault::Spoiled)?;
            if self.isolation == Isolation::Savepoints {
                self.savepoint(MESSAGE).await.map_err(Fault::Spoiled)?;
            }
            self.touched = true;
        } else if self.guards_statements() && self.wrote {
            self.savepoint(STATEMENT).await.map_err(Fault::Spoiled)?;
        }
        self.write_answered().await.map_err(Fault::Spoiled)?;
        self.at_work.set(self.place);
        Ok(())
    }

    /// Runs what the running message takes for done, after what came before it.
    async fn write_answered(&mut self) -> Result<(), StoreError> {
        if self.answered.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.touched, true) {
            self.flush().await?;
        }
        let answered = std::mem::take(&mut self.answered);
        sql::write(&mut *self.session, &self.traits, &answered, &self.at_work).await
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.savepoints += 1;
        self.session.savepoint(name).await
    }

    /// What a statement's answer means for the message and for the transaction.
    async fn after_statement<T>(
        &mut self,
        answer: Result<T, StoreError>,
    ) -> Result<Result<T, Constraint>, Fault> {
        // The message's own savepoint serves its first statement: there is nothing between the two.
        let guarded = self.guards_statements() && self.wrote;
        match answer {
            Ok(value) => {
                if guarded {
                    self.session
                        .release(STATEMENT)
                        .await
                        .map_err(Fault::Spoiled)?;
                }
                self.wrote = true;
                Ok(Ok(value))
            }
            Err(StoreError::Constraint(constraint)) => {
                self.after_constraint(guarded)
                    .await
                    .map_err(Fault::Spoiled)?;
                Ok(Err(constraint))
            }
            Err(error @ (StoreError::Statement { .. } | StoreError::Limit(_))) => Err(
                Fault::Failed(Failure::later(error.code(), error.to_string())),
            ),
            Err(error) => Err(Fault::Spoiled(error)),
        }
    }

    /// Makes the transaction usable again after a constraint has refused a statement.
    async fn after_constraint(&mut self, guarded: bool) -> Result<(), StoreError> {
        if guarded {
            return self.session.rollback_to(STATEMENT).await;
        }
        if self.guards_statements() {
            self.session.rollback_to(MESSAGE).await?;
            return self.savepoint(MESSAGE).await;
        }
        if self.session.alive().await {
            return Ok(());
        }
        Err(StoreError::TransactionLost(
            "a constraint refused a statement that no savepoint guards".into(),
        ))
    }

    fn guards_statements(&self) -> bool {
        self.isolation == Isolation::Savepoints && self.traits.error_kills_transaction
    }
}

/// A flush that a constraint or a value refused, as the failure of the only message it can belong to.
pub fn flush_failure(error: &StoreError) -> Failure {
    use crate::store::ConstraintKind;
    match error {
        // The parent is late: another attempt may find it.
        StoreError::Constraint(constraint) if constraint.kind == ConstraintKind::ForeignKey => {
            Failure::later(code::CONSTRAINT, error.to_string())
        }
        StoreError::Constraint(_) => Failure::never(code::CONSTRAINT, error.to_string()),
        _ => Failure::later(error.code(), error.to_string()),
    }
}
