//! The brake: a consumer that parks message after message for one reason stops, instead of parking its
//! whole queue.
//!
//! ```text
//!             `parks` with one code, no commit between
//!   released ─────────────────────────────────────────▶ on ──── pause over ───▶ probing
//!      ▲                                                ▲                         │
//!      │                                                └── failed: pause doubles ┤
//!      └──────────────────────────── anything commits ────────────────────────────┘
//! ```
//! Pure: the caller brings the time.

use std::time::{Duration, Instant};

use crate::config;
use crate::failure::{Code, code};

/// One consumer's brake.
#[derive(Debug)]
pub struct Brake {
    /// `None` never brakes.
    settings: Option<config::Brake>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many messages in a row were parked with this code.
    Released { row: Option<(Code, u32)> },
    On {
        code: Code,
        pause: Duration,
        next_probe: Instant,
        probing: bool,
    },
}

const RELEASED: State = State::Released { row: None };

/// What a verdict has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// So many messages were parked with this code.
    On(Code, u32),
    Released,
}

impl Brake {
    pub fn new(settings: Option<config::Brake>) -> Self {
        Self {
            settings,
            state: RELEASED,
        }
    }

    /// A message was parked. A duplicate is not a failure: it says nothing about the next message.
    pub fn parked(&mut self, code: Code, now: Instant) -> Change {
        let Some(settings) = &self.settings else {
            return Change::Nothing;
        };
        if code == code::DUPLICATE {
            return Change::Nothing;
        }
        let State::Released { row } = self.state else {
            return self.failed(now);
        };
        let parks = match row {
            Some((same, parks)) if same == code => parks + 1,
            _ => 1,
        };
        if parks < settings.parks {
            self.state = State::Released {
                row: Some((code, parks)),
            };
            return Change::Nothing;
        }
        self.state = State::On {
            code,
            pause: settings.probe,
            next_probe: now + settings.probe,
            probing: false,
        };
        Change::On(code, parks)
    }

    /// An attempt has failed and was not parked yet. Ends a probe; otherwise it decides nothing.
    pub fn failed(&mut self, now: Instant) -> Change {
        let (
            Some(settings),
            State::On {
                code,
                pause,
                probing: true,
                ..
            },
        ) = (&self.settings, self.state)
        else {
            return Change::Nothing;
        };
        let pause = (pause * 2).min(settings.max_probe);
        self.state = State::On {
            code,
            pause,
            next_probe: now + pause,
            probing: false,
        };
        Change::Nothing
    }

    /// A message has committed.
    pub fn committed(&mut self) -> Change {
        match std::mem::replace(&mut self.state, RELEASED) {
            State::On { .. } => Change::Released,
            State::Released { .. } => Change::Nothing,
        }
    }

    /// The code that the brake is on for.
    pub fn on(&self) -> Option<Code> {
        match self.state {
            State::On { code, .. } => Some(code),
            State::Released { .. } => None,
        }
    }

    /// When one message may be tried; `None` while one is, or while the brake is released.
    pub fn next_probe(&self) -> Option<Instant> {
        match self.state {
            State::On {
                next_probe,
                probing: false,
                ..
            } => Some(next_probe),
            _ => None,
        }
    }

    /// Lets one message through, if it is time.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::On {
                next_probe,
                probing: probing @ false,
                ..
            } if *next_probe <= now => {
                *probing = true;
                true
            }
            _ => false,
        }
    }

    /// The probe is over. Where it decided nothing (it was a duplicate, or forgotten), the next message may
    /// be tried at once.
    pub fn end_probe(&mut self) {
        if let State::On { probing, .. } = &mut self.state {
            *probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn brake() -> Brake {
        Brake::new(Some(config::Brake {
            parks: 3,
            probe: SECOND,
            max_probe: 3 * SECOND,
        }))
    }

    fn on(now: Instant) -> Brake {
        let mut brake = brake();
        let changes = [(); 3].map(|()| brake.parked(code::TRAP, now));
        assert_eq!(
            changes,
            [Change::Nothing, Change::Nothing, Change::On(code::TRAP, 3)]
        );
        brake
    }

    #[test]
    fn a_commit_or_another_code_begins_the_count_again() {
        let (mut brake, now) = (brake(), Instant::now());
        for code in [code::TRAP, code::TRAP, code::RETRY, code::TRAP, code::TRAP] {
            assert_eq!(brake.parked(code, now), Change::Nothing);
        }
        assert_eq!(brake.committed(), Change::Nothing);
        assert_eq!(brake.parked(code::TRAP, now), Change::Nothing);
        assert_eq!(brake.on(), None);
    }

    #[test]
    fn duplicates_are_no_reason_to_brake() {
        let (mut brake, now) = (brake(), Instant::now());
        for _ in 0..100 {
            assert_eq!(brake.parked(code::DUPLICATE, now), Change::Nothing);
        }
    }

    #[test]
    fn one_message_is_let_through_when_the_pause_is_over() {
        let now = Instant::now();
        let mut brake = on(now);
        assert!(!brake.begin_probe(now), "the pause has just begun");
        assert!(brake.begin_probe(now + SECOND));
        assert!(!brake.begin_probe(now + SECOND), "one at a time");
    }

    #[test]
    fn a_probe_that_fails_doubles_the_pause_up_to_its_maximum() {
        let mut now = Instant::now();
        let mut brake = on(now);
        for pause in [1, 2, 3, 3] {
            assert!(!brake.begin_probe(now + SECOND * pause - SECOND / 2));
            now += SECOND * pause;
            assert!(brake.begin_probe(now));
            assert_eq!(brake.parked(code::RETRY, now), Change::Nothing);
            brake.end_probe();
            assert_eq!(brake.on(), Some(code::TRAP));
        }
    }

    #[test]
    fn a_probe_that_decides_nothing_is_followed_by_the_next_at_once() {
        let now = Instant::now();
        let mut brake = on(now);
        assert!(brake.begin_probe(now + SECOND));
        brake.end_probe();
        assert!(brake.begin_probe(now + SECOND));
    }

    #[test]
    fn a_probe_that_commits_releases_the_brake() {
        let now = Instant::now();
        let mut brake = on(now);
        assert!(brake.begin_probe(now + SECOND));
        assert_eq!(brake.committed(), Change::Released);
        assert_eq!((brake.on(), brake.next_probe()), (None, None));
        assert_eq!(brake.parked(code::TRAP, now), Change::Nothing);
    }

    #[test]
    fn switched_off_it_never_brakes() {
        let mut brake = Brake::new(None);
        for _ in 0..100 {
            assert_eq!(brake.parked(code::TRAP, Instant::now()), Change::Nothing);
        }
    }
}
