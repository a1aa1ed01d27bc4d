//! The host's clock. What has to agree between hosts uses the database's instead.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch. Zero on a machine whose clock is before it.
pub fn now_micros() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_micros()).ok())
        .unwrap_or_default()
}
