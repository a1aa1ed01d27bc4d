//! Sessions that were given up in the middle of a statement, and what becomes of their server processes.
//!
//! The next session of the same name ends the old one first, so that what it held is free. Postgres looks for that
//! between rows only: a process that is inside one call of a function goes on for as long as the call takes, and
//! holds the claims of its batch meanwhile. Such a process is left behind after a few tries, if it is at a statement
//! of a handler: its session's name is free for another one, and it is listed here until it is gone. One that is at a
//! statement of the host, or at a COMMIT, is waited for: what it does has to be known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::session::{PostgresSession, column};
use super::{PostgresStore, unreachable};
use crate::failure::code;
use crate::store::{ConsumerId, StoreError, StuckSession};

/// How long a new session waits for an abandoned one of its name to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many sessions wait so long before the old one is left behind.
const TRIES: u32 = 2;

/// Sessions of one host that are left behind at a time. Each keeps a processor and a connection of the server: when
/// there are as many, lanes wait for one to end.
const MAX_LEFT: usize = 8;

/// How much longer than its timeout a statement may take before the server is taken not to end it.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// The wait for a row while a session is left behind: what it holds may stay held for hours.
pub(super) const SHORT_LOCK: Duration = Duration::from_millis(500);

/// Messages whose keys get their fate in one look.
const SETTLED_AT_ONCE: i64 = 32;

/// The server's side of a session.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Backend {
    /// The session's, as the host calls it.
    pub name: String,
    pub pid: i32,
    /// When it began: numbers of processes are used again.
    pub began: String,
}

struct Abandoned {
    backend: Backend,
    /// It is at a statement that a handler wrote.
    guests: bool,
    /// New sessions that have waited for its end.
    waited: u32,
}

#[derive(Default)]
struct Given {
    up: Vec<Abandoned>,
    left: Vec<StuckSession>,
}

/// What a store knows of the sessions that were given up.
#[derive(Clone, Default)]
pub(super) struct GivenUp(Arc<Mutex<Given>>);

/// What is left of a session that ends.
pub(super) struct Remains {
    pub backend: Option<Backend>,
    pub given_up: GivenUp,
}

impl Remains {
    /// The session was dropped without its connection, at a statement of a handler or of the host.
    pub fn abandon(&mut self, guests: bool) {
        let abandoned = self.backend.take().map(|backend| Abandoned {
            backend,
            guests,
            waited: 0,
        });
        self.given_up.lock().up.extend(abandoned);
    }
}

impl GivenUp {
    fn lock(&self) -> std::sync::MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn left(&self) -> Vec<StuckSession> {
        self.lock().left.clone()
    }

    pub fn any_left(&self) -> bool {
        !self.lock().left.is_empty()
    }

    /// Takes in what a look has found; `before` was known when it began.
    pub fn note(&self, before: &[StuckSession], found: Vec<StuckSession>) {
        let mut given = self.lock();
        given
            .left
            .retain(|one| !before.contains(one) || found.contains(one));
        for one in found {
            if !given.left.contains(&one) {
                given.left.push(one);
            }
        }
    }

    /// A session of this name that was given up, and has not been seen to end.
    fn of(&self, name: &str) -> Option<Backend> {
        let given = self.lock();
        let old = given.up.iter().find(|old| old.backend.name == name);
        old.map(|old| old.backend.clone())
    }

    fn ended(&self, backend: &Backend) {
        self.lock().up.retain(|old| old.backend != *backend);
    }

    /// A new session has waited in vain. Returns the old one when it is left behind from now on.
    fn waited(&self, backend: &Backend) -> Result<StuckSession, StoreError> {
        let mut given = self.lock();
        let full = given.left.len() >= MAX_LEFT;
        let pid = backend.pid;
        let Some(place) = given.up.iter().position(|old| old.backend == *backend) else {
            return Err(StoreError::Unavailable(format!(
                "the process {pid} of Postgres was waited for twice"
            )));
        };
        let old = &mut given.up[place];
        old.waited += 1;
        if !old.guests || old.waited < TRIES {
            return Err(StoreError::Unavailable(format!(
                "the process {pid} of Postgres, a session that was given up, does not end"
            )));
        }
        if full {
            return Err(StoreError::Unavailable(format!(
                "the process {pid} of Postgres, a session that was given up, does not end, and {MAX_LEFT} others \
                 do not either: the lane waits for one of them"
            )));
        }
        let backend = given.up.remove(place).backend;
        let stuck = StuckSession {
            name: backend.name,
            process: backend.pid,
            began: backend.began,
        };
        given.left.push(stuck.clone());
        Ok(stuck)
    }
}

impl PostgresStore {
    /// The server's side of a fresh session, after those of its name that were given up have ended or were left
    /// behind: whoever has the new session finds nothing of the others locked or undecided. The second is one
    /// that was left behind just now.
    pub(super) async fn take_over(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<(Backend, Option<StuckSession>), StoreError> {
        let mut left = None;
        while let Some(old) = self.given_up.of(name) {
            if end(connection, &old).await.map_err(unreachable)? {
                self.given_up.ended(&old);
            } else {
                left = Some(self.given_up.waited(&old)?);
            }
        }
        let others = self.given_up.left();
        let others = others.iter().filter(|stuck| stuck.name == name).count();
        if others > 0 {
            let shown = format!("{name} ({})", others + 1);
            let rename = sqlx::query("SELECT pg_catalog.set_config('application_name', $1, false)")
                .bind(shown);
            rename
                .execute(&mut *connection)
                .await
                .map_err(unreachable)?;
        }
        let own = sqlx::query(
            "SELECT pid, backend_start::text FROM pg_catalog.pg_stat_activity \
             WHERE pid = pg_catalog.pg_backend_pid()",
        )
        .fetch_one(connection)
        .await
        .map_err(unreachable)?;
        let own = Backend {
            name: name.to_owned(),
            pid: own.try_get(0).map_err(unreachable)?,
            began: own.try_get(1).map_err(unreachable)?,
        };
        Ok((own, left))
    }
}

/// Ends another session of this role, and waits until it is gone. False when it does not go.
async fn end(connection: &mut PgConnection, backend: &Backend) -> Result<bool, sqlx::Error> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let there = sqlx::query(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
             WHERE pid = $1 AND backend_start::text = $2",
        )
        .bind(backend.pid)
        .bind(&backend.began)
        .fetch_optional(&mut *connection)
        .await?;
        if there.is_none() {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(false)
}

/// A session's name as the server shows it: so long, and no longer.
fn shown(name: &str) -> &str {
    const MOST_BYTES: usize = 63;
    &name[..name.floor_char_boundary(MOST_BYTES)]
}

impl PostgresSession {
    /// Sessions that do not end: those that were left behind and are still there, and those of these names whose
    /// statement runs for longer than any is let run, whichever host has begun it. A COMMIT that waits for a standby
    /// has no timeout, and is none of them.
    pub(super) async fn find_stuck(
        &mut self,
        names: &[String],
    ) -> Result<Vec<StuckSession>, StoreError> {
        let known = self.remains.given_up.left();
        let timeout = self.statement_timeout;
        let longest = (!timeout.is_zero()).then(|| (timeout + GRACE).as_secs_f64());
        let select = sqlx::query(
            "SELECT pid, backend_start::text, split_part(application_name, ' (', 1) \
             FROM pg_catalog.pg_stat_activity \
             WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() \
             AND (EXISTS (SELECT FROM unnest($1::int[], $2::text[]) AS known (pid, began) \
             WHERE known.pid = pg_stat_activity.pid AND known.began = backend_start::text) \
             OR (split_part(application_name, ' (', 1) = ANY($3::text[]) AND state = 'active' \
             AND clock_timestamp() - query_start > $4::float8 * interval '1 second' \
             AND wait_event IS DISTINCT FROM 'SyncRep')) ORDER BY pid",
        )
        .bind(known.iter().map(|one| one.process).collect::<Vec<_>>())
        .bind(known.iter().map(|one| one.began.as_str()).collect::<Vec<_>>())
        .bind(names.iter().map(|name| shown(name)).collect::<Vec<_>>())
        .bind(longest);
        let rows = self.rows(select).await?;
        let found = rows.iter().map(|row| {
            let (process, began): (i32, String) = (column(row, 0)?, column(row, 1)?);
            let same = |one: &&StuckSession| one.process == process && one.began == began;
            if let Some(one) = known.iter().find(same) {
                return Ok(one.clone());
            }
            let short: &str = column(row, 2)?;
            let name = names.iter().find(|name| shown(name) == short);
            Ok(StuckSession {
                name: name.map_or(short, String::as_str).to_owned(),
                process,
                began,
            })
        });
        found.collect()
    }

    /// Gives the keys of messages that were parked beside them their fate, where nobody holds the key any more.
    /// True when none is left.
    pub(super) async fn settle_apart(
        &mut self,
        consumer: ConsumerId,
        retention: Option<Duration>,
    ) -> Result<bool, StoreError> {
        self.outside()?;
        let select = self
            .statement(
                "SELECT w.id FROM @hapax_waiting w WHERE w.consumer = $1 AND w.status = 'parked' AND w.code = $2 \
                 AND w.key IS NOT NULL AND NOT EXISTS (SELECT FROM @hapax_ledger l \
                 WHERE l.consumer = w.consumer AND l.key = w.key AND l.fate <> 5) LIMIT $3",
            )
            .bind(consumer.0)
            .bind(code::SQL_UNSTOPPABLE.0)
            .bind(SETTLED_AT_ONCE);
        let rows = self.rows(select).await?;
        if rows.is_empty() {
            return Ok(true);
        }
        self.wait_for_rows(SHORT_LOCK).await?;
        let mut all = rows.len() < SETTLED_AT_ONCE as usize;
        for row in &rows {
            let insert = self
                .statement(
                    "INSERT INTO @hapax_ledger AS l (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
                     SELECT w.consumer, w.key, 3, w.attempts, w.fingerprint, substring(w.plugin FOR 8), \
                     now() + $4::float8 * interval '1 second' FROM @hapax_waiting w \
                     WHERE w.consumer = $1 AND w.id = $2 AND w.status = 'parked' AND w.code = $3 \
                     ON CONFLICT (consumer, key) DO UPDATE SET fate = 3, attempts = excluded.attempts \
                     WHERE l.fate = 5",
                )
                .bind(consumer.0)
                .bind(column::<&[u8]>(row, 0)?)
                .bind(code::SQL_UNSTOPPABLE.0)
                .bind(retention.map(super::ledger::seconds));
            match self.touch(insert).await {
                Ok(_) => {}
                Err(StoreError::LockTimeout(_)) => all = false,
                Err(error) => return Err(error),
            }
        }
        let usual = self.lock_timeout;
        self.wait_for_rows(usual).await?;
        Ok(all)
    }

    pub(super) async fn find_parked_apart(
        &mut self,
        consumer: ConsumerId,
        ids: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let select = self
            .statement(
                "SELECT id FROM @hapax_waiting WHERE consumer = $1 AND id = ANY($2::bytea[]) \
                 AND status = 'parked' AND code = $3",
            )
            .bind(consumer.0)
            .bind(ids)
            .bind(code::SQL_UNSTOPPABLE.0);
        let rows = self.rows(select).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    /// How long this session waits for rows from now on, outside of a transaction.
    pub(super) async fn wait_for_rows(&mut self, most: Duration) -> Result<(), StoreError> {
        let most_ms = most.as_millis().min(i32::MAX as u128);
        self.command(format!("SET lock_timeout = {most_ms}")).await
    }
}
