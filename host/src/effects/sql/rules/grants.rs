//! What a consumer may touch: tables to read, tables to write, functions to call.
//!
//! Names are folded once, the way the store's database folds them, so that a comparison of two [`Table`]s is a
//! comparison of what the database would find. Writing includes reading. Names that belong to the host or to the
//! database itself can never be granted.

use std::collections::BTreeSet;
use std::fmt;

use super::Dialect;

/// A table, as the database knows it. No schema means: the one that unqualified names resolve to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Table {
    pub schema: Option<String>,
    pub name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// A name in `grant` that cannot be granted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{name}` in grant.{list} {reason}")]
pub struct BadGrant {
    pub list: &'static str,
    pub name: String,
    pub reason: &'static str,
}

/// The `grant` of a consumer, resolved.
#[derive(Clone, Debug)]
pub struct Grants {
    read: BTreeSet<Table>,
    write: BTreeSet<Table>,
    functions: BTreeSet<Table>,
}

impl Grants {
    /// Takes the lists as they stand in the configuration: `table` or `schema.table`, folded like an unquoted name
    /// of the dialect, or quoted (`"Table"`) to be taken as it is. Says everything that is wrong at once.
    pub fn new<S: AsRef<str>>(
        dialect: Dialect,
        read: &[S],
        write: &[S],
        functions: &[S],
    ) -> Result<Self, Vec<BadGrant>> {
        let mut bad = Vec::new();
        let mut resolve = |list: &'static str, names: &[S], what: Named| -> BTreeSet<Table> {
            let mut tables = BTreeSet::new();
            for name in names {
                match parse(dialect, name.as_ref(), what) {
                    Ok(table) => {
                        tables.insert(table);
                    }
                    Err(reason) => bad.push(BadGrant {
                        list,
                        name: name.as_ref().to_owned(),
                        reason,
                    }),
                }
            }
            tables
        };
        let write = resolve("write", write, Named::Table);
        let mut read = resolve("read", read, Named::Table);
        let functions = resolve("functions", functions, Named::Function);
        read.extend(write.iter().cloned());
        if bad.is_empty() {
            Ok(Self {
                read,
                write,
                functions,
            })
        } else {
            Err(bad)
        }
    }

    pub fn may_read(&self, table: &Table) -> bool {
        self.read.contains(table)
    }

    pub fn may_write(&self, table: &Table) -> bool {
        self.write.contains(table)
    }

    /// The last names of all granted functions.
    pub fn function_names(&self) -> Vec<String> {
        self.functions
            .iter()
            .map(|function| function.name.clone())
            .collect()
    }

    pub fn may_call(&self, function: &Table) -> bool {
        self.functions.contains(function)
    }
}

/// What a name stands for: tables and functions fold differently, and have different owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Named {
    Table,
    /// A function, or a type that is not built in.
    Function,
}

fn parse(dialect: Dialect, name: &str, what: Named) -> Result<Table, &'static str> {
    let quote = if dialect == Dialect::Mysql { '`' } else { '"' };
    let mut parts = Vec::new();
    for part in name.split('.') {
        let quoted = part
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote));
        let plain = quoted.unwrap_or(part);
        if plain.is_empty() || plain.contains(['"', '`', '\'', '\0']) {
            return Err("is not a name: write `table` or `schema.table`");
        }
        parts.push(fold(dialect, what, plain, quoted.is_some()));
    }
    let name = parts.pop().ok_or("is empty")?;
    let schema = parts.pop();
    if !parts.is_empty() {
        return Err("has too many parts: write `table` or `schema.table`");
    }
    let table = place(dialect, schema, name);
    match owner(dialect, what, &table) {
        Some(reason) => Err(reason),
        None => Ok(table),
    }
}

/// The table or function a statement names, or the reason why nobody may name it.
pub(super) fn place(dialect: Dialect, schema: Option<String>, name: String) -> Table {
    // In SQLite `main` is the database itself: guests can make no temporary tables that could hide its tables.
    let schema = schema.filter(|schema| !(dialect == Dialect::Sqlite && schema == "main"));
    Table { schema, name }
}

/// Who else a name belongs to, when no consumer may have it.
pub(super) fn owner(dialect: Dialect, what: Named, table: &Table) -> Option<&'static str> {
    let schema = table.schema.as_deref().unwrap_or_default();
    let host = "belongs to the host and can never be granted";
    let database = "belongs to the database system and can never be granted";
    if is_host_name(&table.name) || is_host_name(schema) {
        return Some(host);
    }
    let system = match dialect {
        // A `pg_` function may be granted by whoever knows it, a `pg_` table is a catalog.
        Dialect::Postgres => {
            starts_with(schema, "pg_")
                || schema.eq_ignore_ascii_case("information_schema")
                || (what == Named::Table && starts_with(&table.name, "pg_"))
        }
        Dialect::Sqlite => {
            starts_with(&table.name, "sqlite_")
                || starts_with(&table.name, "pragma_")
                || schema.eq_ignore_ascii_case("temp")
        }
        Dialect::Mysql => ["mysql", "information_schema", "performance_schema", "sys"]
            .iter()
            .any(|system| schema.eq_ignore_ascii_case(system)),
    };
    system.then_some(database)
}

/// The host's own tables all carry this prefix, whatever the case, quoting or schema.
pub(super) fn is_host_name(name: &str) -> bool {
    starts_with(name, "hapax_")
}

pub(super) fn starts_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// A name as the database compares it. MySQL compares table names by the server's settings; taking them exactly
/// refuses more than a lenient server would, never less.
pub(super) fn fold(dialect: Dialect, what: Named, name: &str, quoted: bool) -> String {
    match (dialect, what) {
        (Dialect::Postgres, _) if quoted => name.to_owned(),
        (Dialect::Mysql, Named::Table) => name.to_owned(),
        _ => name.to_ascii_lowercase(),
    }
}
