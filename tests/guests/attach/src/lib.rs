//! Opens other files, changes SQLite's settings, loads machine code.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "ATTACH DATABASE '/tmp/evil.db' AS evil",
    "ATTACH ':memory:' AS evil",
    "DETACH evil",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous",
    "SELECT load_extension('/tmp/evil.so')",
    "SELECT LOAD_EXTENSION('/tmp/evil.so', 'main')",
    "SELECT * FROM pragma_table_info('t_effects')",
    "SELECT * FROM pragma_database_list",
    "VACUUM INTO '/tmp/evil.db'",
    "SELECT readfile('/etc/passwd')",
    "SELECT fts3_tokenizer('evil', 'x')",
    "SELECT edit('x')",
    "CREATE VIRTUAL TABLE evil USING fts5(x)",
    "SELECT * FROM sqlite_dbpage",
    "SELECT randomblob(1000000000)",
    "SELECT zeroblob(1000000000)",
    "SELECT printf('%.1000000000d', 1)",
];

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(statement) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        match number % 3 {
            0 => drop(sql::execute(statement, params![])),
            1 if !statement.starts_with("SELECT") => sql::defer(statement, params![]),
            _ => drop(sql::query(statement, params![])),
        }
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
