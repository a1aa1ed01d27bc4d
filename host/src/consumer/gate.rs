//! What holds a consumer back, in one place: an operator's pause, the brake, a line of held messages that
//! is full.
//!
//! | closed by | source | lanes |
//! |---|---|---|
//! | an operator | gives its messages back, subscribes again afterwards | begin nothing |
//! | the brake | keeps its messages, unacknowledged, as long as the broker lets it | try one message at a time |
//! | a full line | gives its messages back | work off the table |
//!
//! A batch that has begun is finished, whatever closes meanwhile. Nothing here acknowledges or drops a
//! message.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::brake::{Brake, Change};
use crate::failure::Code;

/// The gate of one consumer.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    /// Rings whenever the state has changed.
    changed: watch::Sender<()>,
    /// How many lanes are at work.
    inside: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    operator: Option<String>,
    full: bool,
    brake: Brake,
}

/// A lane's leave to work, until it is dropped.
#[derive(Debug)]
pub struct Pass<'g> {
    gate: &'g Gate,
    /// Only one message may be tried.
    pub probe: bool,
}

impl Gate {
    pub fn new(brake: Brake) -> Self {
        Self {
            state: Mutex::new(State {
                operator: None,
                full: false,
                brake,
            }),
            changed: watch::Sender::new(()),
            inside: watch::Sender::new(0),
        }
    }

    /// An operator's pause. True when it is another one than before.
    pub fn pause(&self, reason: &str) -> bool {
        self.change(|state| {
            let before = state.operator.replace(reason.to_owned());
            before.as_deref() != Some(reason)
        })
    }

    /// The end of an operator's pause. True when there was one.
    pub fn resume(&self) -> bool {
        self.change(|state| state.operator.take().is_some())
    }

    /// A line of held messages is full, or has room again. True when that is new.
    pub fn set_full(&self, full: bool) -> bool {
        self.change(|state| std::mem::replace(&mut state.full, full) != full)
    }

    /// Tells the brake what became of a message.
    pub fn brake(&self, note: impl FnOnce(&mut Brake) -> Change) -> Change {
        let mut change = Change::Nothing;
        self.change(|state| {
            change = note(&mut state.brake);
            change != Change::Nothing
        });
        change
    }

    pub fn paused(&self) -> Option<String> {
        self.lock().operator.clone()
    }

    pub fn braked(&self) -> Option<Code> {
        self.lock().brake.on()
    }

    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Whether messages that are held are to be given back.
    pub fn turns_away(&self) -> bool {
        let state = self.lock();
        state.operator.is_some() || state.full
    }

    /// Whether anything is closed.
    pub fn is_closed(&self) -> bool {
        let state = self.lock();
        state.operator.is_some() || state.full || state.brake.on().is_some()
    }

    /// Why nothing is taken, for people; `None` while the gate is open.
    pub fn reason(&self) -> Option<String> {
        let state = self.lock();
        if let Some(reason) = &state.operator {
            return Some(format!("paused: {reason}"));
        }
        if let Some(code) = state.brake.on() {
            return Some(format!(
                "braked: message after message was parked as {code}"
            ));
        }
        state
            .full
            .then(|| "full: one partition holds max-held messages behind a failed one".to_owned())
    }

    /// Waits until a source may subscribe. With the brake on that is when one message may be tried.
    pub async fn may_subscribe(&self) {
        self.wait(|state| match (&state.operator, state.full) {
            (None, false) => behind(&mut state.brake, |brake, now| {
                brake.next_probe().is_some_and(|next| next <= now)
            }),
            _ => Wanted::Change,
        })
        .await;
    }

    /// Waits until a lane that has work may begin it.
    pub async fn enter(&self) -> Pass<'_> {
        let mut probe = false;
        self.wait(|state| {
            if state.operator.is_some() {
                return Wanted::Change;
            }
            let wanted = behind(&mut state.brake, Brake::begin_probe);
            probe = wanted == Wanted::Nothing && state.brake.on().is_some();
            wanted
        })
        .await;
        self.inside.send_modify(|lanes| *lanes += 1);
        Pass { gate: self, probe }
    }

    /// Rings at every change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until no lane is at work.
    pub async fn emptied(&self) {
        let mut inside = self.inside.subscribe();
        // The sender lives as long as the gate.
        let _ = inside.wait_for(|lanes| *lanes == 0).await;
    }

    /// Asks again whenever the state has changed or a probe is due, until nothing more is wanted.
    async fn wait(&self, mut ask: impl FnMut(&mut State) -> Wanted) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let wanted = ask(&mut self.lock());
            let due = match wanted {
                Wanted::Nothing => return,
                Wanted::Change => None,
                Wanted::Time(due) => Some(due),
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = until(due) => {}
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let changed = change(&mut self.lock());
        if changed {
            self.changed.send_replace(());
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What somebody waits for who was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Change,
    Time(Instant),
}

/// Nothing is wanted while the brake is released, or when `probe` lets one through.
fn behind(brake: &mut Brake, probe: impl FnOnce(&mut Brake, Instant) -> bool) -> Wanted {
    if brake.on().is_none() || probe(brake, Instant::now()) {
        return Wanted::Nothing;
    }
    brake.next_probe().map_or(Wanted::Change, Wanted::Time)
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.gate.change(|state| {
                state.brake.end_probe();
                true
            });
        }
        self.gate.inside.send_modify(|lanes| *lanes -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::failure::code;

    fn gate(probe: Duration) -> Gate {
        Gate::new(Brake::new(Some(config::Brake {
            parks: 1,
            probe,
            max_probe: probe,
        })))
    }

    async fn is_let_in(gate: &Gate) -> bool {
        tokio::time::timeout(Duration::from_millis(20), gate.enter())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_paused_consumer_lets_nobody_begin_and_those_inside_finish() {
        let gate = gate(Duration::from_secs(60));
        let inside = gate.enter().await;
        assert!(gate.pause("a migration of the shop"));
        assert!(!gate.pause("a migration of the shop"), "nothing new");
        assert!(gate.turns_away());
        assert!(!is_let_in(&gate).await);
        let emptied = gate.emptied();
        tokio::pin!(emptied);
        assert!(futures_util::poll!(emptied.as_mut()).is_pending());
        drop(inside);
        emptied.await;
        assert!(gate.resume());
        assert!(is_let_in(&gate).await);
    }

    #[tokio::test]
    async fn who_waits_is_let_in_when_the_pause_ends() {
        let gate = gate(Duration::from_secs(60));
        gate.pause("lunch");
        let (pass, ()) = tokio::join!(gate.enter(), async {
            tokio::task::yield_now().await;
            gate.resume();
        });
        assert!(!pass.probe);
    }

    #[tokio::test]
    async fn the_brake_lets_one_in_at_a_time_and_a_commit_lets_all_in() {
        let gate = gate(Duration::from_millis(1));
        gate.brake(|brake| brake.parked(code::TRAP, Instant::now()));
        assert_eq!(gate.braked(), Some(code::TRAP));
        assert!(!gate.turns_away(), "what it holds stays held");
        let probe = gate.enter().await;
        assert!(probe.probe);
        assert!(!is_let_in(&gate).await);
        assert_eq!(gate.brake(Brake::committed), Change::Released);
        assert!(!gate.enter().await.probe);
    }

    #[tokio::test]
    async fn a_full_line_keeps_the_source_away_and_lets_the_lanes_work() {
        let gate = gate(Duration::from_secs(60));
        assert!(gate.set_full(true));
        assert!(gate.turns_away());
        assert!(is_let_in(&gate).await);
        let (_, changed) = tokio::join!(gate.may_subscribe(), async { gate.set_full(false) });
        assert!(changed);
    }
}
