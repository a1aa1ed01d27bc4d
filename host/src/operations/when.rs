//! Times as operators mean them: a moment, or so long ago by the database's clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Microseconds since the Unix epoch.
    At(i64),
    Ago(Duration),
}

impl When {
    /// In microseconds since the Unix epoch, for a database whose clock says `now`.
    pub(super) fn micros(when: Option<Self>, now: i64) -> Option<i64> {
        when.map(|when| match when {
            Self::At(micros) => micros,
            Self::Ago(ago) => {
                now.saturating_sub(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX))
            }
        })
    }
}
