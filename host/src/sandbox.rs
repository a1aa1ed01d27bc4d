//! Runs one message in one fresh instance of a component, within limits, and says how it ended.
//!
//! The instance sees the world through the imports of `wit/plugin.wit` and a WASI without anything behind
//! it. What it asks for is collected, or run in the transaction that is passed in and out. Whatever it does,
//! the host goes on: a trap, a limit or a refused statement is the message's failure and a value.
//!
//! Does not commit, does not undo what a failed message has done to the transaction, and keeps nothing of
//! an instance: guest memory must not outlive a transaction that may be rolled back.

mod bindings;
mod engine;
mod envelope;
mod grants;
mod guest;
mod imports;
mod limits;
mod plugins;
mod seeds;
mod symbols;
mod text;
mod trap;
pub(crate) mod wasi;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::{Duration, Instant};

use wasmtime::Store;

use crate::config::{Idempotency, Limits, Random, Settings};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::Rules;
use crate::effects::{Effects, Transaction};
use crate::failure::{Again, Failure, code};
use crate::message::Message;
use crate::store::{Dialect, StoreError};

use bindings::hapax::plugin::types;
use envelope::Headers;
use guest::Guest;
use text::{MAX_TEXT_BYTES, bounded, without_nul};

pub use engine::{MAX_LOADS, Sandbox, SandboxError, SandboxOptions};
pub use grants::Import;
pub use plugins::{
    Cache, LoadError, LoadProblem, MAX_VERSIONS, Plugin, PluginDigest, Usage, read_component,
    remove_leftovers, write_file,
};
pub use seeds::Seeds;
pub use symbols::serve_if_asked as read_debug_information_if_asked;

/// Memory of an instance above which its end is left to a thread for work that blocks.
const LARGE_MEMORY_BYTES: u64 = 8 << 20;

/// What stays the same for all messages of a consumer.
#[derive(Debug)]
pub struct Environment {
    pub consumer: String,
    pub limits: Limits,
    /// What the handler reads with `context.config`.
    pub config: Settings,
    pub composer: Composer,
    pub rules: Rules,
    pub random: Random,
    pub idempotency: Idempotency,
    /// Made of the store's secret and the consumer's name.
    pub seeds: Seeds,
    pub dialect: Dialect,
    /// Of the ledger: part of every outgoing message's id. Raised while the host runs, when an operator makes
    /// the ledger forget.
    pub generation: AtomicI32,
}

impl Environment {
    /// Messages have keys, so that two runs of one message are known to be the same message.
    fn is_idempotent(&self) -> bool {
        self.idempotency == Idempotency::On
    }

    /// A message that runs again draws the same random bytes again.
    fn repeats(&self) -> bool {
        self.random == Random::Seeded && self.is_idempotent()
    }
}

/// One run of one message.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub message: Arc<Message>,
    /// Empty without idempotency.
    pub key: Arc<[u8]>,
    /// From 1.
    pub number: u32,
    pub redelivered: bool,
    /// When the attempt began, microseconds since the Unix epoch: the only time its handler sees.
    pub now_micros: i64,
    pub lane: i16,
}

/// How a run ended.
#[derive(Debug)]
pub enum Verdict {
    /// Keep its effects.
    Done,
    /// Keep its effects; there was nothing to do, for this reason.
    Ignored(String),
    /// The message has failed: undo what it did.
    Failed(Failure),
    /// The transaction cannot go on, through no fault that is known to be the message's.
    Spoiled(StoreError),
}

/// What a run leaves behind.
pub struct Run {
    pub verdict: Verdict,
    /// The transaction, with the message's statements in it. `None` when the time was up while the database
    /// was at work: the connection went with it, and with the connection everything the batch had not
    /// committed.
    pub transaction: Option<Transaction>,
    /// What the message collected. Empty unless its effects are kept.
    pub effects: Effects,
    /// What it wrote to stdout and stderr, bounded.
    pub output: String,
    pub elapsed: Duration,
}

impl Run {
    /// A run whose store could not be taken apart, and what it held with it.
    fn lost(error: StoreError, elapsed: Duration) -> Self {
        Self {
            verdict: Verdict::Spoiled(error),
            transaction: None,
            effects: Effects::default(),
            output: String::new(),
            elapsed,
        }
    }
}

impl Plugin {
    /// Runs one message in an instance of its own. Waits while all instances are taken. When the returned
    /// future is dropped, so are the instance and the transaction.
    pub async fn run(
        &self,
        environment: &Arc<Environment>,
        attempt: Attempt,
        transaction: Transaction,
    ) -> Run {
        let sandbox = &self.0.sandbox;
        let _slot = sandbox.slot().await;
        let started = Instant::now();
        let message = Arc::clone(&attempt.message);
        let guest = Guest::new(Arc::clone(environment), attempt, Some(transaction));
        let mut store = sandbox.store(guest);
        let meter = store.data().processor.meter();
        let handle = meter.charge(self.handle(&mut store, &message));
        let ended = tokio::time::timeout(environment.limits.wall, handle).await;
        let fuel = match sandbox.metered {
            true => store.get_fuel().map_or(0, |left| u64::MAX - left),
            // Not asked for: the answer would be an error, which costs a backtrace where those are on.
            false => 0,
        };
        let memory = store.data().space.memory_bytes();
        self.usage().ran(started.elapsed(), memory, fuel);
        let mut guest = match take_apart(store).await {
            Ok(guest) => guest,
            Err(error) => return Run::lost(error, started.elapsed()),
        };

        let output = without_nul(guest.wasi.written());
        let verdict = match ended {
            Ok(Ok(answer)) => judge(answer, &output),
            Ok(Err(error)) => {
                let (mut verdict, frames) = trap::verdict(error, &output);
                if let Verdict::Failed(failure) = &mut verdict {
                    failure.backtrace = self.0.symbols.backtrace(frames).await;
                }
                with_output(verdict, &output)
            }
            Err(_) => with_output(Verdict::Failed(wall_limit(&environment.limits)), &output),
        };
        imports::log_output(&mut guest, &output);
        let kept = matches!(verdict, Verdict::Done | Verdict::Ignored(_));
        Run {
            verdict,
            effects: if kept {
                guest.take_effects()
            } else {
                Effects::default()
            },
            transaction: guest.take_transaction(),
            output,
            elapsed: started.elapsed(),
        }
    }

    async fn handle(
        &self,
        store: &mut Store<Guest>,
        message: &Message,
    ) -> wasmtime::Result<Result<types::Outcome, types::Failure>> {
        let handler = self.0.handler.instantiate_async(&mut *store).await?;
        let headers = Headers::of(message);
        let headers = headers.lend();
        handler
            .call_handle(store, envelope::lend(message, &headers))
            .await
    }
}

impl Sandbox {
    /// The store of one instance, with its limits set.
    fn store(&self, guest: Guest) -> Store<Guest> {
        let hostcall_bytes =
            usize::try_from(guest.environment.limits.hostcall_bytes).unwrap_or(usize::MAX);
        let mut store = Store::new(&self.engine, guest);
        store.data_mut().processor.start(self.pulse());
        store.limiter(|guest| &mut guest.space);
        store.set_hostcall_fuel(hostcall_bytes);
        store.set_max_component_handles(limits::MAX_HANDLES);
        store.set_epoch_deadline(1);
        if self.metered {
            store.set_fuel(u64::MAX).expect("the engine counts fuel");
        }
        store.epoch_deadline_callback(|mut context| {
            let Guest {
                processor,
                environment,
                ..
            } = context.data_mut();
            processor.tick(&environment.limits)
        });
        store
    }
}

/// Ends an instance and returns what the host kept for it. Giving back a large memory takes the kernel
/// milliseconds, which must not hold up the messages of other lanes.
async fn take_apart(store: Store<Guest>) -> Result<Guest, StoreError> {
    if store.data().space.memory_bytes() <= LARGE_MEMORY_BYTES {
        return Ok(store.into_data());
    }
    let task = tokio::task::spawn_blocking(move || store.into_data());
    task.await
        .map_err(|error| StoreError::Unavailable(format!("an instance was not ended: {error}")))
}

/// How many headers of a message a handler is shown: all of them, whatever they hold. For the fuzz target of the
/// mapping, which is not public.
#[doc(hidden)]
pub fn shown_headers(message: &Message) -> usize {
    let headers = Headers::of(message);
    let headers = headers.lend();
    envelope::lend(message, &headers).headers.len()
}

/// What the handler's own answer means.
fn judge(answer: Result<types::Outcome, types::Failure>, output: &str) -> Verdict {
    let reason = |text: String| bounded(text.as_bytes(), MAX_TEXT_BYTES);
    match answer {
        Ok(types::Outcome::Done) => Verdict::Done,
        Ok(types::Outcome::Ignored(why)) => Verdict::Ignored(reason(why)),
        Err(types::Failure::Retry(retry)) => {
            let mut failure = Failure::later(code::RETRY, reason(retry.reason));
            failure.again = Again::Later(retry.after.map(Duration::from_millis));
            with_output(Verdict::Failed(failure), output)
        }
        Err(types::Failure::Reject(why)) => with_output(
            Verdict::Failed(Failure::never(code::REJECTED, reason(why))),
            output,
        ),
    }
}

fn wall_limit(limits: &Limits) -> Failure {
    Failure::later(
        code::WALL_LIMIT,
        format!("took longer than {:?} (limits.wall)", limits.wall),
    )
}

/// Gives a failure what the guest wrote, and makes its text fit for a table.
fn with_output(verdict: Verdict, output: &str) -> Verdict {
    match verdict {
        Verdict::Failed(mut failure) => {
            failure.message = bounded(failure.message.as_bytes(), MAX_TEXT_BYTES);
            failure.stderr = output.to_owned();
            Verdict::Failed(failure)
        }
        other => other,
    }
}
