//! What a service manager hears of the host: that it is ready, how it is, that it stops, and that it lives.
//!
//! systemd's protocol (`sd_notify(3)`): datagrams to the socket named by `NOTIFY_SOCKET`, and a watchdog where
//! `WATCHDOG_USEC` is set. Without them nothing is said. The watchdog hears of a host only while none of its
//! lanes is stuck; a database or a broker that is away is no reason to be restarted.

use std::sync::Arc;
use std::time::Duration;

use crate::consumer::Consumer;

/// The shortest pause between two messages, whatever the watchdog wants.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The pause between two looks at the consumers where there is no watchdog.
const STATUS_PAUSE: Duration = Duration::from_secs(10);

/// Everything that was named is found, and messages are taken.
pub fn ready(consumers: &[Arc<Consumer>]) {
    notify(&[State::Ready, State::Status(&status(consumers))]);
}

/// The drain begins.
pub fn stopping() {
    notify(&[State::Stopping, State::Status("draining")]);
}

/// Tells of the consumers and feeds the watchdog, until it is dropped.
pub async fn watch(consumers: Vec<Arc<Consumer>>) {
    let watchdog = watchdog();
    // Half of what it allows, as its manual asks for.
    let pause = watchdog.map_or(STATUS_PAUSE, |allowed| (allowed / 2).max(PAUSE_MIN));
    let mut told = String::new();
    let mut was_stuck = false;
    loop {
        let stuck = consumers.iter().find(|consumer| consumer.is_stuck());
        match stuck {
            Some(consumer) if !was_stuck => {
                tracing::error!(consumer = %consumer.name, "A lane is stuck; the watchdog hears no more of this host");
            }
            None if watchdog.is_some() => notify(&[State::Watchdog]),
            _ => {}
        }
        was_stuck = stuck.is_some();
        let now = status(&consumers);
        if now != told {
            notify(&[State::Status(&now)]);
            told = now;
        }
        tokio::time::sleep(pause).await;
    }
}

/// One line: how many consumers take messages, and why others do not.
fn status(consumers: &[Arc<Consumer>]) -> String {
    let up = consumers
        .iter()
        .filter(|consumer| consumer.metrics.up.get() == 1)
        .count();
    let mut text = format!("{up} of {} consumers take messages", consumers.len());
    for consumer in consumers {
        if let Some(reason) = consumer.gate.reason() {
            text.push_str(&format!(
                "; {}: {}",
                consumer.name,
                reason.replace('\n', " ")
            ));
        }
    }
    text
}

enum State<'a> {
    Ready,
    Stopping,
    Watchdog,
    Status(&'a str),
}

#[cfg(unix)]
fn notify(states: &[State<'_>]) {
    use sd_notify::NotifyState;
    let states = states
        .iter()
        .map(|state| match state {
            State::Ready => NotifyState::Ready,
            State::Stopping => NotifyState::Stopping,
            State::Watchdog => NotifyState::Watchdog,
            State::Status(text) => NotifyState::Status(text),
        })
        .collect::<Vec<_>>();
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, "The service manager was not told");
    }
}

#[cfg(unix)]
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

#[cfg(not(unix))]
fn notify(_: &[State<'_>]) {}

#[cfg(not(unix))]
fn watchdog() -> Option<Duration> {
    None
}
