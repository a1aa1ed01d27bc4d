//! What one statement of a guest may take of this process, since SQLite works in it.
//!
//! SQLite looks at the deadline where its machine jumps: neither within a call of a function nor between the columns of
//! one row. So values are bounded in length: all of them by the largest that anybody stores here, and those of a
//! statement by what its calls may take together (`sqlite_value_bytes` of the rules), which is much less where it
//! searches or calls many. A bound on the heap catches what is many values at once; `json` keeps deep documents and
//! long paths from functions that recurse.

use libsqlite3_sys::{
    SQLITE_LIMIT_ATTACHED, SQLITE_LIMIT_LENGTH, SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
    SQLITE_LIMIT_VDBE_OP, sqlite3_hard_heap_limit64, sqlite3_limit,
};
use sqlx::sqlite::{LockedSqliteHandle, SqliteConnection};

use crate::effects::sql::rules::MAX_SHORT_BYTES;

/// The largest value that is stored, unless the configuration asks for more.
pub(super) const DEFAULT_VALUE_BYTES: u64 = 20 << 20;

/// The program of one statement. The largest that the rules allow has a few thousand steps.
const PROGRAM_STEPS: i32 = 1_000_000;

/// Memory of SQLite beside values: its cache of pages has 32 MiB, programs and sorters the rest.
const HEAP_BYTES: i64 = 128 << 20;

/// How many of the largest values fit into memory at once: bound, read, made and written.
const VALUES_AT_ONCE: i64 = 4;

/// Sets the bounds of a connection that was just opened.
pub(super) fn set(handle: &mut LockedSqliteHandle<'_>, value_bytes: i32) {
    limit(handle, SQLITE_LIMIT_LENGTH, value_bytes);
    limit(
        handle,
        SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
        i32::try_from(MAX_SHORT_BYTES).unwrap_or(i32::MAX),
    );
    limit(handle, SQLITE_LIMIT_VDBE_OP, PROGRAM_STEPS);
    limit(handle, SQLITE_LIMIT_ATTACHED, 0);
    // SAFETY: a function without preconditions; it counts for all connections of the process.
    unsafe {
        sqlite3_hard_heap_limit64(HEAP_BYTES + VALUES_AT_ONCE * i64::from(value_bytes));
    }
}

/// Sets the length of values for what runs next.
pub(super) async fn shorten(
    connection: &mut SqliteConnection,
    value_bytes: i32,
) -> Result<(), sqlx::Error> {
    let mut handle = connection.lock_handle().await?;
    limit(&mut handle, SQLITE_LIMIT_LENGTH, value_bytes);
    Ok(())
}

fn limit(handle: &mut LockedSqliteHandle<'_>, which: i32, value: i32) {
    // SAFETY: the handle is that of an open connection, and locked: nothing else uses it meanwhile.
    unsafe {
        sqlite3_limit(handle.as_raw_handle().as_ptr(), which, value);
    }
}
