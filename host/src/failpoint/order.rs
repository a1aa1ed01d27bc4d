//! What a person ordered for a point: which passage, of which key, and what then.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Point, VARIABLE};

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Kill,
    Stop,
}

/// An action at one passage of a point.
#[derive(Debug)]
pub(super) struct Order {
    point: Point,
    /// From 1.
    number: u64,
    key: Option<Vec<u8>>,
    action: Action,
    passages: AtomicU64,
}

/// The variable holds something that is not understood: the process must not run as if it did not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} holds `{order}`, which {problem}; it is for tests: unset it, or write POINT[@NUMBER][@key=KEY]=kill or =stop"
)]
pub struct BadOrder {
    order: String,
    problem: String,
}

/// Reads orders that are separated by `;`.
pub(super) fn read(text: &str) -> Result<Vec<Order>, BadOrder> {
    text.split(';')
        .map(|order| {
            read_one(order).map_err(|problem| BadOrder {
                order: order.to_owned(),
                problem,
            })
        })
        .collect()
}

fn read_one(text: &str) -> Result<Order, String> {
    let (place, action) = text.rsplit_once('=').ok_or("names no action")?;
    let action = match action {
        "kill" => Action::Kill,
        "stop" => Action::Stop,
        other => return Err(format!("names an unknown action `{other}`")),
    };
    let (place, key) = match place.split_once("@key=") {
        Some((place, key)) => (place, Some(key.as_bytes().to_vec())),
        None => (place, None),
    };
    let (name, number) = match place.split_once('@') {
        Some((name, number)) => match number.parse() {
            Ok(number @ 1..) => (name, number),
            _ => return Err(format!("counts passages with `{number}`")),
        },
        None => (place, 1),
    };
    let point = Point::ALL.iter().find(|point| point.name() == name);
    Ok(Order {
        point: *point.ok_or_else(|| format!("names an unknown point `{name}`"))?,
        number,
        key,
        action,
        passages: AtomicU64::new(0),
    })
}

impl Order {
    /// What to do at this passage.
    pub(super) fn due(&self, point: Point, key: &[u8]) -> Option<Action> {
        if self.point != point || self.key.as_ref().is_some_and(|wanted| wanted != key) {
            return None;
        }
        let passage = self.passages.fetch_add(1, Ordering::Relaxed) + 1;
        (passage == self.number).then_some(self.action)
    }
}

impl Action {
    #[cfg(unix)]
    pub(super) fn act(self) {
        use rustix::process::{Signal, getpid, kill_process};
        let signal = match self {
            Self::Kill => Signal::KILL,
            Self::Stop => Signal::STOP,
        };
        kill_process(getpid(), signal).expect("a process may signal itself");
        // The signal may reach another thread first: nothing may happen after a kill.
        if self == Self::Kill {
            loop {
                std::thread::park();
            }
        }
    }

    #[cfg(not(unix))]
    pub(super) fn act(self) {
        std::process::abort();
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
        })
    }
}
