//! What one statement of a guest may take of this process, since SQLite works in it.
//!
//! SQLite looks at the deadline between the steps of its machine. One step is a whole function call, so values are
//! bounded in length: all of them by the largest that anybody stores here, and those of a statement that searches or
//! replaces, whose time is a product of two lengths, by much less. A bound on the heap catches what is many values
//! at once.

use libsqlite3_sys::{
    SQLITE_LIMIT_ATTACHED, SQLITE_LIMIT_LENGTH, SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
    SQLITE_LIMIT_VDBE_OP, sqlite3_hard_heap_limit64, sqlite3_limit,
};
use sqlx::sqlite::{LockedSqliteHandle, SqliteConnection};

use crate::effects::sql::rules::MAX_SHORT_BYTES;

/// The largest value that is stored, unless the configuration asks for more.
pub(super) const DEFAULT_VALUE_BYTES: u64 = 20 << 20;

/// The longest value in a statement that searches. A function takes less than a second for two of these lengths.
const SEARCHED_BYTES: i32 = 256 * 1024;

/// The program of one statement. The largest that the rules allow has a few thousand steps.
const PROGRAM_STEPS: i32 = 1_000_000;

/// Memory of SQLite beside values: its cache of pages has 32 MiB, programs and sorters the rest.
const HEAP_BYTES: i64 = 128 << 20;

/// How many of the largest values fit into memory at once: bound, read, made and written.
const VALUES_AT_ONCE: i64 = 4;

/// Words of functions and operators whose time is a product of two lengths.
const SEARCHES: &[&str] = &[
    "instr",
    "replace",
    "trim",
    "ltrim",
    "rtrim",
    "like",
    "glob",
    "json_patch",
];

/// Whether the statement uses one of them. One that merely has a column of that name is bounded too.
pub(super) fn searches(word: &str) -> bool {
    SEARCHES
        .iter()
        .any(|search| word.eq_ignore_ascii_case(search))
}

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

/// Sets the length of values for what runs next: that of a search, or again the whole.
pub(super) async fn shorten(
    connection: &mut SqliteConnection,
    short: bool,
    value_bytes: i32,
) -> Result<(), sqlx::Error> {
    let bytes = if short {
        SEARCHED_BYTES.min(value_bytes)
    } else {
        value_bytes
    };
    let mut handle = connection.lock_handle().await?;
    limit(&mut handle, SQLITE_LIMIT_LENGTH, bytes);
    Ok(())
}

fn limit(handle: &mut LockedSqliteHandle<'_>, which: i32, value: i32) {
    // SAFETY: the handle is that of an open connection, and locked: nothing else uses it meanwhile.
    unsafe {
        sqlite3_limit(handle.as_raw_handle().as_ptr(), which, value);
    }
}
