//! What a statement of a guest counts on to be as the rules of SQL take it, and what the catalog says about that.

use std::collections::BTreeSet;

/// Names that the rules took for those of the database itself, written without a schema.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BuiltIns {
    pub functions: BTreeSet<String>,
    /// As signs.
    pub operators: BTreeSet<String>,
    pub types: BTreeSet<String>,
}

impl BuiltIns {
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() && self.operators.is_empty() && self.types.is_empty()
    }
}

/// How wide a column is by its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Width {
    pub bytes: u64,
    /// A number, a time, a truth value: never an array or a document.
    pub number: bool,
}

/// The longest value that a column of any length is taken to hold.
pub const ASSUMED_BYTES: u64 = 2 << 20;
/// The digits of a number that a column without a precision is taken to hold.
pub const ASSUMED_DIGITS: u64 = 32 << 10;

/// What is asked once for each new statement.
#[derive(Clone, Debug, Default)]
pub struct CatalogQuestion {
    pub built_ins: BuiltIns,
    /// Functions that are granted by name: what calls them is as it should be.
    pub granted: Vec<String>,
    /// The tables of the statement, with their schemas.
    pub tables: Vec<(Option<String>, String)>,
    /// Names that could be columns of theirs.
    pub columns: Vec<String>,
}

impl CatalogQuestion {
    pub fn is_empty(&self) -> bool {
        self.built_ins.is_empty() && self.columns.is_empty()
    }
}

/// What the catalog says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogAnswer {
    /// The first thing of somebody's own that a statement could reach by the name of a built-in.
    pub other: Option<String>,
    /// The widest column of each name in any of the tables.
    pub widths: Vec<Option<Width>>,
}
