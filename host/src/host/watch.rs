//! Watches what operators write into the rows of `hapax_consumer`, and marks there what this host works by.
//!
//! Guarantees that an operator's pause and a raised generation reach this host within about a second, also
//! when they were written through another host, and that rules which were changed under it stop the
//! consumer. The marks live as long as the session: a host that is gone holds none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config;
use crate::consumer::{Consumer, rule_texts};
use crate::http::Readiness;
use crate::store::{ConsumerMarks, ConsumerRow, Mark, Session, Store, StoreError, StuckSession};

/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How often the row of a consumer may change while its marks are set.
const MARK_TRIES: usize = 8;

/// The consumer's row, made when it is not there, with the marks of its rules and its generation held by
/// the session.
pub(super) async fn mark(
    session: &mut dyn Session,
    name: &str,
    key_rule: &str,
    fingerprint_rule: &str,
) -> Result<ConsumerRow, StoreError> {
    let mut row = session.consumer(name, key_rule, fingerprint_rule).await?;
    session.upkeep().hold_mark(Mark::Rules(row.id)).await?;
    for _ in 0..MARK_TRIES {
        let mark = Mark::Generation(row.id, row.generation);
        session.upkeep().hold_mark(mark).await?;
        // What was changed before the marks were held is seen now; afterwards it is not changed.
        let again = session.consumer(name, key_rule, fingerprint_rule).await?;
        if again.generation == row.generation {
            return Ok(again);
        }
        session.upkeep().drop_mark(mark).await?;
        row = again;
    }
    Err(StoreError::Conflict(format!(
        "the generation of the consumer {name} keeps changing"
    )))
}

/// A consumer of this host.
pub(super) struct Watched {
    consumer: Arc<Consumer>,
    rules: (String, String),
    /// Ends this consumer alone.
    stop: CancellationToken,
}

impl Watched {
    pub fn new(
        consumer: &Arc<Consumer>,
        settings: &config::Consumer,
        stop: CancellationToken,
    ) -> Self {
        Self {
            consumer: Arc::clone(consumer),
            rules: rule_texts(settings),
            stop,
        }
    }

    fn generation(&self) -> i32 {
        self.consumer.environment.generation.load(Ordering::Acquire)
    }
}

/// The watch of one host.
pub(super) struct Watch {
    store: Arc<dyn Store>,
    /// Present while the marks are held.
    session: Option<Box<dyn Session>>,
    consumers: Vec<Watched>,
    readiness: Arc<Readiness>,
    /// Sessions that do not end, as the log has told of them.
    told: Vec<StuckSession>,
}

impl Watch {
    /// `session` holds the marks of all the consumers.
    pub fn new(
        store: Arc<dyn Store>,
        session: Box<dyn Session>,
        consumers: Vec<Watched>,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self {
            store,
            session: Some(session),
            consumers,
            readiness,
            told: Vec::new(),
        }
    }

    /// Looks until told to stop. The marks are held until then.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut trouble = Backoff::for_servers();
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => looked,
            };
            let pause = match looked {
                Ok(()) => {
                    trouble.reset();
                    LOOK_PAUSE
                }
                Err(error) => {
                    self.session = None;
                    if trouble.tries() == 1 {
                        tracing::warn!(%error, "Pauses and other marks of operators cannot be read");
                    }
                    trouble.pause()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let mut session = self.store.session("hapax watch").await?;
                for watched in &self.consumers {
                    let id = watched.consumer.id;
                    session.upkeep().hold_mark(Mark::Rules(id)).await?;
                    let generation = Mark::Generation(id, watched.generation());
                    session.upkeep().hold_mark(generation).await?;
                }
                self.session.insert(session)
            }
        };
        let rows = session.upkeep().consumers().await?;
        for watched in &self.consumers {
            match rows.iter().find(|row| row.id == watched.consumer.id) {
                Some(row) => apply(&mut **session, watched, row, &self.readiness).await?,
                None => give_up(
                    watched,
                    &self.readiness,
                    "its row in hapax_consumer is gone",
                ),
            }
        }
        let before = self.store.stuck_sessions();
        let names = self
            .consumers
            .iter()
            .flat_map(|watched| watched.consumer.session_names());
        let names = names.collect::<Vec<_>>();
        let found = session.upkeep().stuck_sessions(&names).await?;
        let none_there = before.is_empty() && found.is_empty();
        for watched in &self.consumers {
            // Before those who wait for a session's end hear of it.
            let consumer = &watched.consumer;
            if none_there && !consumer.owes_fates.load(Ordering::Relaxed) {
                continue;
            }
            consumer.owes_fates.store(true, Ordering::Relaxed);
            let settled = session
                .upkeep()
                .settle_parked_apart(consumer.id, consumer.retention);
            // One more look when they are gone: a message may have been parked since.
            let owes = !settled.await? || !none_there;
            consumer.owes_fates.store(owes, Ordering::Relaxed);
        }
        self.store.note_stuck(&before, found);
        self.tell_of_stuck();
        Ok(())
    }

    /// Says in the log, in the metrics and to whoever asks for readiness which sessions do not end.
    fn tell_of_stuck(&mut self) {
        let stuck = self.store.stuck_sessions();
        if stuck == self.told {
            return;
        }
        for one in stuck.iter().filter(|one| !self.told.contains(one)) {
            tracing::warn!(
                session = %one.name, process = one.process, began = %one.began,
                "A statement does not end, and the database does not end it; what its session has claimed stays \
                 locked until the process is gone"
            );
        }
        for one in self.told.iter().filter(|one| !stuck.contains(one)) {
            tracing::info!(
                session = %one.name, process = one.process,
                "The session whose statement did not end is gone"
            );
        }
        for watched in &self.consumers {
            let names = watched.consumer.session_names();
            let sessions = stuck.iter().filter(|one| names.contains(&one.name)).count();
            let sessions = i64::try_from(sessions).unwrap_or(i64::MAX);
            watched.consumer.metrics.stuck_sessions.set(sessions);
        }
        let notes = stuck.iter().map(|one| {
            format!(
                "the session {} (process {} of the database, since {}) is at a statement that does not end",
                one.name, one.process, one.began
            )
        });
        self.readiness.note(notes.collect());
        self.told = stuck;
    }
}

async fn apply(
    session: &mut dyn Session,
    watched: &Watched,
    row: &ConsumerMarks,
    readiness: &Readiness,
) -> Result<(), StoreError> {
    let consumer = &watched.consumer;
    let (key_rule, fingerprint_rule) = &watched.rules;
    if (&row.key_rule, &row.fingerprint_rule) != (key_rule, fingerprint_rule) {
        // Only while this host had lost its marks with its connection.
        let reason = "its key or fingerprint rules were changed under it (hapax consumers rekey)";
        give_up(watched, readiness, reason);
        return Ok(());
    }
    match &row.pause {
        Some(pause) => consumer.pause(&reason(&pause.by, &pause.why)),
        None => consumer.resume(),
    }
    let held = watched.generation();
    if row.generation != held {
        session
            .upkeep()
            .hold_mark(Mark::Generation(row.id, row.generation))
            .await?;
        consumer
            .environment
            .generation
            .store(row.generation, Ordering::Release);
        // From now on nobody here makes ids of the old one; who waits for that goes on.
        session
            .upkeep()
            .drop_mark(Mark::Generation(row.id, held))
            .await?;
    }
    Ok(())
}

/// An operator's pause, as log and status tell it.
pub fn reason(by: &str, why: &str) -> String {
    match why {
        "" => format!("by {by}"),
        why => format!("by {by}: {why}"),
    }
}

fn give_up(watched: &Watched, readiness: &Readiness, reason: &str) {
    if watched.stop.is_cancelled() {
        return;
    }
    tracing::error!(consumer = %watched.consumer.name, reason, "Consumer stopped; restart the host");
    watched.stop.cancel();
    watched.consumer.metrics.up.set(0);
    readiness.broken(&watched.consumer.name, reason.to_owned());
}
