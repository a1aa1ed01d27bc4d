//! SQLite's JSON functions, in front of which stands a look at what they are given.
//!
//! They recurse for each step of a path that they make and for each level of a document in bytes (JSONB), without a
//! bound, on a thread with a stack of 2 MiB. Text they read no deeper than 1,000 levels. So each function that the rules
//! list, the operators `->` and `->>` among them, is replaced by one that reads bytes as text, insists on short paths
//! and hands the work to the function it replaces, on a connection of its own without a database. Checks, generated
//! columns and indexes of the schema call these, too. The aggregates are written anew: one cannot be handed on.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::rc::Rc;

use libsqlite3_sys as ffi;
use sqlx::sqlite::LockedSqliteHandle;

use crate::effects::sql::rules::MAX_SHORT_BYTES;

/// Marks text that is JSON, between the functions. Source: `JSON_SUBTYPE` in SQLite's json.c.
const JSON: u32 = 74;

/// Statements kept for the shapes of calls.
const MAX_STATEMENTS: usize = 64;

/// What an argument is.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Document,
    Path,
    Value,
    Plain,
}

/// The functions, with the roles of the first two arguments and of those that follow by turns, and whether a text that
/// comes out is JSON.
const FUNCTIONS: &[(&CStr, [Role; 4], bool)] = {
    use Role::{Document, Path, Plain, Value};
    &[
        (c"json", [Document, Plain, Plain, Plain], true),
        (c"json_valid", [Document, Plain, Plain, Plain], false),
        (c"json_type", [Document, Path, Plain, Plain], false),
        (c"json_array_length", [Document, Path, Plain, Plain], false),
        (c"json_extract", [Document, Path, Path, Path], false),
        (c"json_remove", [Document, Path, Path, Path], true),
        (c"json_set", [Document, Path, Value, Path], true),
        (c"json_insert", [Document, Path, Value, Path], true),
        (c"json_replace", [Document, Path, Value, Path], true),
        (c"json_patch", [Document, Document, Plain, Plain], true),
        (c"json_quote", [Value, Plain, Plain, Plain], true),
        (c"json_array", [Value, Value, Value, Value], true),
        (c"json_object", [Plain, Value, Plain, Value], true),
        (c"->", [Document, Path, Plain, Plain], true),
        (c"->>", [Document, Path, Plain, Plain], false),
    ]
};

/// A connection to no database, on which the functions are still SQLite's own.
struct Inner {
    db: *mut ffi::sqlite3,
    statements: RefCell<HashMap<CString, *mut ffi::sqlite3_stmt>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.forget();
        // SAFETY: opened by `open`, and all of its statements are gone.
        unsafe {
            ffi::sqlite3_close(self.db);
        }
    }
}

impl Inner {
    fn open() -> Option<Self> {
        let mut db = ptr::null_mut();
        let flags = ffi::SQLITE_OPEN_READWRITE
            | ffi::SQLITE_OPEN_CREATE
            | ffi::SQLITE_OPEN_MEMORY
            | ffi::SQLITE_OPEN_NOMUTEX;
        // SAFETY: a name that ends in NUL, and a place for the handle, which is closed by `drop` even after an error.
        let opened =
            unsafe { ffi::sqlite3_open_v2(c":memory:".as_ptr(), &mut db, flags, ptr::null()) };
        let inner = Self {
            db,
            statements: RefCell::default(),
        };
        (opened == ffi::SQLITE_OK).then_some(inner)
    }

    fn forget(&self) {
        for (_, statement) in self.statements.borrow_mut().drain() {
            // SAFETY: prepared by `prepare`, and finalized nowhere else.
            unsafe {
                ffi::sqlite3_finalize(statement);
            }
        }
    }

    fn prepare(&self, text: CString) -> Option<*mut ffi::sqlite3_stmt> {
        if let Some(statement) = self.statements.borrow().get(&text) {
            return Some(*statement);
        }
        if self.statements.borrow().len() >= MAX_STATEMENTS {
            self.forget();
        }
        let mut statement = ptr::null_mut();
        // SAFETY: the handle is open, and the text ends in NUL.
        let prepared = unsafe {
            ffi::sqlite3_prepare_v2(self.db, text.as_ptr(), -1, &mut statement, ptr::null_mut())
        };
        if prepared != ffi::SQLITE_OK || statement.is_null() {
            return None;
        }
        self.statements.borrow_mut().insert(text, statement);
        Some(statement)
    }

    /// Runs the statement with these arguments, and lends its one value.
    ///
    /// # Safety
    ///
    /// The context and the arguments are those of a call that SQLite makes now.
    unsafe fn run(
        &self,
        context: *mut ffi::sqlite3_context,
        text: CString,
        arguments: &[*mut ffi::sqlite3_value],
        give: impl FnOnce(*mut ffi::sqlite3_value),
    ) {
        let Some(statement) = self.prepare(text) else {
            // SAFETY: the context is live, and the inner handle has the text of its last error.
            unsafe {
                ffi::sqlite3_result_error(context, ffi::sqlite3_errmsg(self.db), -1);
            }
            return;
        };
        // SAFETY: values that live for the whole call are bound as copies; the statement belongs to `self.db`, which
        // only this thread uses now, and is reset before anybody else runs it.
        unsafe {
            let outer = ffi::sqlite3_context_db_handle(context);
            let longest = ffi::sqlite3_limit(outer, ffi::SQLITE_LIMIT_LENGTH, -1);
            ffi::sqlite3_limit(self.db, ffi::SQLITE_LIMIT_LENGTH, longest);
            let mut bound = ffi::SQLITE_OK;
            for (place, argument) in (1..).zip(arguments) {
                bound |= if ffi::sqlite3_value_type(*argument) == ffi::SQLITE_BLOB {
                    ffi::sqlite3_bind_text(
                        statement,
                        place,
                        ffi::sqlite3_value_blob(*argument).cast(),
                        ffi::sqlite3_value_bytes(*argument),
                        ffi::SQLITE_TRANSIENT(),
                    )
                } else {
                    ffi::sqlite3_bind_value(statement, place, *argument)
                };
            }
            if bound == ffi::SQLITE_OK && ffi::sqlite3_step(statement) == ffi::SQLITE_ROW {
                give(ffi::sqlite3_column_value(statement, 0));
            } else {
                ffi::sqlite3_result_error(context, ffi::sqlite3_errmsg(self.db), -1);
            }
            ffi::sqlite3_reset(statement);
            ffi::sqlite3_clear_bindings(statement);
        }
    }
}

/// What a function finds behind it. Only one thread at a time uses a connection and what belongs to it.
struct Call {
    name: &'static CStr,
    roles: [Role; 4],
    json: bool,
    inner: Rc<Inner>,
}

/// Puts the functions in the place of SQLite's own.
pub(super) fn guard(handle: &mut LockedSqliteHandle<'_>) -> Result<(), sqlx::Error> {
    let failed = || sqlx::Error::Configuration("SQLite takes no function of the host".into());
    let inner = Rc::new(Inner::open().ok_or_else(failed)?);
    let flags = ffi::SQLITE_UTF8
        | ffi::SQLITE_DETERMINISTIC
        | ffi::SQLITE_INNOCUOUS
        | ffi::SQLITE_SUBTYPE
        | ffi::SQLITE_RESULT_SUBTYPE;
    let db = handle.as_raw_handle().as_ptr();
    let context = |name, roles, json| {
        let call = Call {
            name,
            roles,
            json,
            inner: Rc::clone(&inner),
        };
        Box::into_raw(Box::new(call)).cast::<c_void>()
    };
    for (name, roles, json) in FUNCTIONS {
        // SAFETY: the handle is open and locked; the context is given away, and `forget` takes it back in any case.
        let made = unsafe {
            ffi::sqlite3_create_function_v2(
                db,
                name.as_ptr(),
                -1,
                flags,
                context(name, *roles, *json),
                Some(scalar),
                None,
                None,
                Some(forget),
            )
        };
        if made != ffi::SQLITE_OK {
            return Err(failed());
        }
    }
    for (name, arguments) in [(c"json_group_array", 1), (c"json_group_object", 2)] {
        // SAFETY: as above.
        let made = unsafe {
            ffi::sqlite3_create_window_function(
                db,
                name.as_ptr(),
                arguments,
                flags,
                context(name, [Role::Value; 4], true),
                Some(step),
                Some(finish),
                Some(look),
                Some(inverse),
                Some(forget),
            )
        };
        if made != ffi::SQLITE_OK {
            return Err(failed());
        }
    }
    Ok(())
}

unsafe extern "C" fn forget(call: *mut c_void) {
    // SAFETY: made by `guard`, and SQLite gives it back once.
    drop(unsafe { Box::from_raw(call.cast::<Call>()) });
}

/// The call and the arguments that SQLite passes.
///
/// # Safety
///
/// Only within a call of a function that `guard` has made.
unsafe fn passed<'a>(
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) -> (&'a Call, &'a [*mut ffi::sqlite3_value]) {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: SQLite passes an array of `count` values; without any, the pointer may be anything.
    unsafe {
        let call = &*ffi::sqlite3_user_data(context).cast::<Call>();
        let values = match count {
            0 => &[],
            _ => std::slice::from_raw_parts(values, count),
        };
        (call, values)
    }
}

unsafe fn refuse(context: *mut ffi::sqlite3_context, message: &CStr) {
    // SAFETY: the context of the call that runs; the text is copied.
    unsafe {
        ffi::sqlite3_result_error(context, message.as_ptr(), -1);
    }
}

/// Refuses what a function must not see.
///
/// # Safety
///
/// The values are arguments of the call that runs.
unsafe fn is_fit(
    context: *mut ffi::sqlite3_context,
    role: Role,
    value: *mut ffi::sqlite3_value,
) -> bool {
    // SAFETY: as above.
    unsafe {
        let is_bytes = ffi::sqlite3_value_type(value) == ffi::SQLITE_BLOB;
        match role {
            Role::Value if is_bytes => {
                refuse(context, c"JSON cannot hold BLOB values");
                false
            }
            Role::Path
                if usize::try_from(ffi::sqlite3_value_bytes(value))
                    .is_ok_and(|bytes| bytes > MAX_SHORT_BYTES) =>
            {
                refuse(context, c"a JSON path has more than 1024 bytes");
                false
            }
            _ => true,
        }
    }
}

unsafe extern "C" fn scalar(
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: called by SQLite for a function of `guard`.
    unsafe {
        let (call, values) = passed(context, count, values);
        let mut terms = Vec::with_capacity(values.len());
        for (place, value) in values.iter().enumerate() {
            let [first, second, third, last] = call.roles;
            let role = match place {
                0 => first,
                1 => second,
                // The rest takes turns.
                _ if place % 2 == 0 => third,
                _ => last,
            };
            if !is_fit(context, role, *value) {
                return;
            }
            let is_json = role == Role::Value && ffi::sqlite3_value_subtype(*value) == JSON;
            let number = place + 1;
            terms.push(if is_json {
                format!("json(?{number})")
            } else {
                format!("?{number}")
            });
        }
        let name = call.name.to_string_lossy();
        let text = match (&*name, terms.as_slice()) {
            ("->" | "->>", [document, path]) => format!("SELECT {document} {name} {path}"),
            ("->" | "->>", _) => {
                return refuse(context, c"wrong number of arguments");
            }
            _ => format!("SELECT {name}({})", terms.join(",")),
        };
        let Ok(text) = CString::new(text) else {
            return refuse(context, c"not a call");
        };
        call.inner.run(context, text, values, |value| {
            let is_text = ffi::sqlite3_value_type(value) == ffi::SQLITE_TEXT;
            let subtype = ffi::sqlite3_value_subtype(value);
            ffi::sqlite3_result_value(context, value);
            if is_text && (call.json || subtype == JSON) {
                ffi::sqlite3_result_subtype(context, JSON);
            }
        });
    }
}

/// The elements of an aggregate so far; what has no label counts and is not written.
#[derive(Default)]
struct Elements {
    written: VecDeque<Option<String>>,
    bytes: usize,
}

/// The place where SQLite keeps the elements between the rows.
///
/// # Safety
///
/// Only within a call of an aggregate that `guard` has made.
unsafe fn elements(context: *mut ffi::sqlite3_context, make: bool) -> *mut *mut Elements {
    let bytes = if make { size_of::<*mut Elements>() } else { 0 };
    // SAFETY: the memory is zeroed when it is made, and nobody else writes to it.
    unsafe {
        ffi::sqlite3_aggregate_context(context, c_int::try_from(bytes).unwrap_or(0))
            .cast::<*mut Elements>()
    }
}

unsafe extern "C" fn step(
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: called by SQLite for an aggregate of `guard`.
    unsafe {
        let (call, values) = passed(context, count, values);
        let place = elements(context, true);
        if place.is_null() {
            return ffi::sqlite3_result_error_nomem(context);
        }
        if (*place).is_null() {
            *place = Box::into_raw(Box::default());
        }
        let elements = &mut **place;
        let mut terms = Vec::with_capacity(2);
        for (number, value) in (1..).zip(values) {
            if !is_fit(context, Role::Value, *value) {
                return;
            }
            terms.push(match (values.len(), number) {
                (2, 1) => format!("json_quote(CAST(?{number} AS TEXT)) || ':'"),
                _ if ffi::sqlite3_value_subtype(*value) == JSON => format!("json(?{number})"),
                _ => format!("json_quote(?{number})"),
            });
        }
        if values.len() == 2 && ffi::sqlite3_value_type(values[0]) == ffi::SQLITE_NULL {
            elements.written.push_back(None);
            return;
        }
        let Ok(text) = CString::new(format!("SELECT {}", terms.join(" || "))) else {
            return refuse(context, c"not a call");
        };
        call.inner.run(context, text, values, |value| {
            let bytes = usize::try_from(ffi::sqlite3_value_bytes(value)).unwrap_or(0);
            let start = ffi::sqlite3_value_text(value);
            let written = match (start.is_null(), bytes) {
                (true, _) | (_, 0) => String::new(),
                _ => String::from_utf8_lossy(std::slice::from_raw_parts(start, bytes)).into_owned(),
            };
            elements.bytes += written.len() + 1;
            elements.written.push_back(Some(written));
        });
        let outer = ffi::sqlite3_context_db_handle(context);
        let longest = ffi::sqlite3_limit(outer, ffi::SQLITE_LIMIT_LENGTH, -1);
        if usize::try_from(longest).is_ok_and(|longest| elements.bytes > longest) {
            *elements = Elements::default();
            ffi::sqlite3_result_error_toobig(context);
        }
    }
}

unsafe extern "C" fn inverse(
    context: *mut ffi::sqlite3_context,
    _: c_int,
    _: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: called by SQLite for an aggregate of `guard`, after as many steps.
    unsafe {
        let place = elements(context, false);
        if let Some(elements) = place.as_ref().and_then(|place| place.as_mut())
            && let Some(Some(written)) = elements.written.pop_front()
        {
            elements.bytes -= written.len() + 1;
        }
    }
}

unsafe extern "C" fn look(context: *mut ffi::sqlite3_context) {
    // SAFETY: called by SQLite for an aggregate of `guard`.
    unsafe {
        let place = elements(context, false);
        let elements = place.as_ref().and_then(|place| place.as_ref());
        tell(context, elements.unwrap_or(&Elements::default()));
    }
}

unsafe extern "C" fn finish(context: *mut ffi::sqlite3_context) {
    // SAFETY: called by SQLite for an aggregate of `guard`, once, whatever became of the statement.
    unsafe {
        let place = elements(context, false);
        match place.as_mut().filter(|elements| !elements.is_null()) {
            Some(elements) => {
                let all = Box::from_raw(*elements);
                *elements = ptr::null_mut();
                tell(context, &all);
            }
            None => tell(context, &Elements::default()),
        }
    }
}

/// Gives the whole of an aggregate.
///
/// # Safety
///
/// As for its callers.
unsafe fn tell(context: *mut ffi::sqlite3_context, elements: &Elements) {
    // SAFETY: the context is live, and the text is copied.
    unsafe {
        let call = &*ffi::sqlite3_user_data(context).cast::<Call>();
        let (open, close) = match call.name.to_bytes() {
            b"json_group_array" => ('[', ']'),
            _ => ('{', '}'),
        };
        let mut text = String::with_capacity(elements.bytes + 2);
        text.push(open);
        for written in elements.written.iter().flatten() {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(written);
        }
        text.push(close);
        let Ok(bytes) = c_int::try_from(text.len()) else {
            return ffi::sqlite3_result_error_toobig(context);
        };
        ffi::sqlite3_result_text(
            context,
            text.as_ptr().cast(),
            bytes,
            ffi::SQLITE_TRANSIENT(),
        );
        ffi::sqlite3_result_subtype(context, JSON);
    }
}
