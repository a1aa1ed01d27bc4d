//! Statements that every second handler writes, and that are easy to write wrongly.
//!
//! Names of tables and columns go into the statement as they are: they come from the handler's
//! source, never from a message. Values are parameters.

use super::{Error, ToValue, Value, execute, query};
use crate::context::{self, Dialect};

/// Columns with their values: `&[("sku", &sku), ("amount", &3)]`.
pub type Columns<'a> = &'a [(&'a str, &'a dyn ToValue)];

/// Writes a row, whether or not one with this key is there. `key` is the table's primary key or
/// another unique one; `set` is written in both cases.
///
/// ```
/// # use hapax_guest::prelude::*;
/// #[hapax_guest::handler]
/// fn handle(sku: String) -> Result<Outcome, Failure> {
///     sql::upsert("stock", &[("sku", &sku)], &[("amount", &3)])?;
///     Ok(Outcome::Done)
/// }
///
/// let run = hapax_guest::testing::Message::text("A-1").run(handle);
/// assert_eq!(
///     run.sql[0].statement,
///     "INSERT INTO stock (sku, amount) VALUES ($1, $2) \
///      ON CONFLICT (sku) DO UPDATE SET amount = excluded.amount",
/// );
/// assert_eq!(run.sql[0].parameters, params!["A-1", 3]);
/// ```
pub fn upsert(table: &str, key: Columns<'_>, set: Columns<'_>) -> Result<(), Error> {
    let all = || key.iter().chain(set);
    let parameters: Vec<Value> = all().map(|(_, value)| value.to_value()).collect();
    let columns = list(all(), |name| name.to_owned());
    let places: Vec<String> = (1..=parameters.len()).map(|n| format!("${n}")).collect();
    let names = list(key.iter(), |name| name.to_owned());
    let conflict = match (context::dialect(), set.is_empty()) {
        // MySQL has no DO NOTHING, and INSERT IGNORE would hide every other error.
        (Dialect::Mysql, true) => {
            let same = list(key.iter(), |name| format!("{name} = {name}"));
            format!("ON DUPLICATE KEY UPDATE {same}")
        }
        (Dialect::Mysql, false) => {
            let new = list(set.iter(), |name| format!("{name} = VALUES({name})"));
            format!("ON DUPLICATE KEY UPDATE {new}")
        }
        (_, true) => format!("ON CONFLICT ({names}) DO NOTHING"),
        (_, false) => {
            let new = list(set.iter(), |name| format!("{name} = excluded.{name}"));
            format!("ON CONFLICT ({names}) DO UPDATE SET {new}")
        }
    };
    let places = places.join(", ");
    let statement = format!("INSERT INTO {table} ({columns}) VALUES ({places}) {conflict}");
    execute(&statement, parameters).map(drop)
}

fn list<'a>(
    columns: impl Iterator<Item = &'a (&'a str, &'a dyn ToValue)>,
    form: impl Fn(&str) -> String,
) -> String {
    columns
        .map(|(name, _)| form(name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// What became of a [`transition`].
#[derive(Clone, Debug, PartialEq)]
pub enum Transition {
    /// The row was in the state before, and is in the state after now.
    Moved,
    /// The row was in the state after already: another message did it.
    Already,
    /// The row is in this state, from which the step is not allowed, or not yet.
    Elsewhere(String),
    /// There is no such row.
    Missing,
}

/// One step of a state machine: moves a row from one state to the next, if it is there.
///
/// Guarded by the state itself, so that two messages at a time cannot both take the step.
///
/// ```
/// # use hapax_guest::prelude::*;
/// use sql::Transition::*;
///
/// #[hapax_guest::handler]
/// fn handle(order: String) -> Result<Outcome, Failure> {
///     match sql::transition("orders", ("id", &order), "status", "paid", "shipped")? {
///         Moved => Ok(Outcome::Done),
///         Already => Ok(Outcome::Ignored("shipped before".into())),
///         Elsewhere(state) if state == "placed" => Err(Failure::retry("not paid yet")),
///         Elsewhere(state) => Err(Failure::reject(format!("cannot ship what is {state}"))),
///         Missing => Err(Failure::retry("the order is not here yet")),
///     }
/// }
///
/// let message = hapax_guest::testing::Message::text("o-1");
/// assert_eq!(message.run(handle).result, Ok(Outcome::Done));
/// ```
pub fn transition(
    table: &str,
    (key, id): (&str, &dyn ToValue),
    column: &str,
    from: &str,
    to: &str,
) -> Result<Transition, Error> {
    let id = id.to_value();
    let step = format!("UPDATE {table} SET {column} = $1 WHERE {key} = $2 AND {column} = $3");
    if execute(&step, [to.to_value(), id.clone(), from.to_value()])? > 0 {
        return Ok(Transition::Moved);
    }
    let rows = query(
        &format!("SELECT {column} FROM {table} WHERE {key} = $1"),
        [id],
    )?;
    Ok(match rows.first().map(|row| state_name(row.values())) {
        None => Transition::Missing,
        Some(state) if state == to => Transition::Already,
        Some(state) => Transition::Elsewhere(state),
    })
}

/// A state may be of an enumerated type of the store. NULL is the empty text: no state.
fn state_name(values: &[Value]) -> String {
    match values.first() {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Other(other)) => other.text.clone(),
        Some(Value::S64(number)) => number.to_string(),
        _ => String::new(),
    }
}
