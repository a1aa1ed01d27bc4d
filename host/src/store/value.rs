//! Values between a guest and a database: the cases of `sql.value` in the WIT.

/// One parameter, or one value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    S64(i64),
    F64(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Exact, as text.
    Decimal(String),
    /// Microseconds since the Unix epoch.
    Timestamp(i64),
    /// Lower case, hyphenated.
    Uuid(String),
    Json(String),
    /// A type without a case of its own: the store's name for it, and the value's text.
    Other {
        kind: String,
        text: String,
    },
}

impl Value {
    /// The bytes that the value counts against a limit.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) => 1,
            Self::S64(_) | Self::F64(_) | Self::Timestamp(_) => 8,
            Self::Text(text) | Self::Decimal(text) | Self::Uuid(text) | Self::Json(text) => {
                text.len()
            }
            Self::Bytes(bytes) => bytes.len(),
            Self::Other { kind, text } => kind.len() + text.len(),
        }
    }
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The store's name of the type, lower case.
    pub kind: String,
}

/// A whole result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
}
