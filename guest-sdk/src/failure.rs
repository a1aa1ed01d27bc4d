//! What a handler says when it cannot handle a message, and the rule that turns errors into it.
//!
//! The rule is here and nowhere else. It decides by the first error in the chain of sources that
//! it knows, so an error type of your own keeps the class of what it wraps.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::bindings::hapax::plugin::types as wit;
use crate::{Outcome, sql};

/// The message is not dealt with: every effect of this run is undone.
///
/// Any [`Error`] converts into it with `?`; see the table at the [crate root](crate).
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// It may succeed later. After the consumer's `max-attempts` it is parked.
    Retry {
        /// Shown to the operator.
        reason: String,
        /// The earliest time of the next attempt, from now, honoured up to the consumer's
        /// `max-delay`. `None`: the consumer's backoff.
        after: Option<Duration>,
    },
    /// It will never succeed: it is parked now, where a person sees it.
    Reject(String),
}

impl Failure {
    /// It may succeed later.
    ///
    /// ```
    /// # use hapax_guest::prelude::*;
    /// # use std::time::Duration;
    /// let failure = Failure::retry("the warehouse has not confirmed yet").after(Duration::from_secs(30));
    /// ```
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry {
            reason: reason.into(),
            after: None,
        }
    }

    /// It will never succeed.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }

    /// Sets the earliest time of the next attempt. A rejected message has none: it is left as it is.
    pub fn after(mut self, delay: Duration) -> Self {
        if let Self::Retry { after, .. } = &mut self {
            *after = Some(delay);
        }
        self
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        classify(&error)
    }
}

/// Not generic, so that a handler with many `?` carries it once.
fn classify(error: &(dyn Error + 'static)) -> Failure {
    let reason = whole_text(error);
    if chain(error).find_map(permanent).unwrap_or(false) {
        Failure::Reject(reason)
    } else {
        Failure::retry(reason)
    }
}

/// Whether trying again is pointless; `None` for an error that this crate does not know.
fn permanent(error: &(dyn Error + 'static)) -> Option<bool> {
    if let Some(error) = error.downcast_ref::<sql::Error>() {
        return Some(error.kind != sql::ErrorKind::ForeignKey);
    }
    error.downcast_ref::<serde_json::Error>().map(|_| true)
}

fn whole_text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in chain(error).skip(1) {
        text.push_str(": ");
        text.push_str(&source.to_string());
    }
    text
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { reason, .. } => write!(f, "retry: {reason}"),
            Self::Reject(reason) => write!(f, "reject: {reason}"),
        }
    }
}

impl From<Failure> for wit::Failure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry { reason, after } => {
                let after = after.map(milliseconds);
                Self::Retry(wit::Retry { reason, after })
            }
            Failure::Reject(reason) => Self::Reject(reason),
        }
    }
}

/// Rounded up, so that a delay never becomes shorter than what was asked for.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What a handler may return: `Result<Outcome, Failure>`, `()` for [`Outcome::Done`], and in the
/// place of [`Failure`] an error type of its own.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "a handler returns `Result<Outcome, Failure>`"
)]
pub trait HandlerResult {
    /// The same, in the host's words.
    fn into_result(self) -> Result<Outcome, Failure>;
}

impl<O: Into<Outcome>, E: Into<Failure>> HandlerResult for Result<O, E> {
    fn into_result(self) -> Result<Outcome, Failure> {
        self.map(Into::into).map_err(Into::into)
    }
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Done
    }
}
