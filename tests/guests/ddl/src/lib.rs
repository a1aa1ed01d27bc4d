//! Changes the schema.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "CREATE TABLE evil_table (id INTEGER)",
    "CREATE TEMPORARY TABLE evil_table (id INTEGER)",
    "CREATE TABLE evil_table AS SELECT 1",
    "SELECT 1 AS id INTO evil_table",
    "SELECT 1 AS id INTO TEMPORARY evil_table",
    "ALTER TABLE t_effects ADD COLUMN evil INTEGER",
    "ALTER TABLE t_effects RENAME TO evil_effects",
    "DROP TABLE t_effects",
    "TRUNCATE t_effects",
    "CREATE INDEX evil_index ON t_effects (step)",
    "CREATE VIEW evil_view AS SELECT 1",
    "CREATE TRIGGER evil_trigger AFTER INSERT ON t_effects BEGIN DELETE FROM t_effects; END",
    "CREATE RULE evil_rule AS ON INSERT TO t_effects DO INSTEAD NOTHING",
    "CREATE SCHEMA evil_schema",
    "CREATE EXTENSION dblink",
    "CREATE SEQUENCE evil_sequence",
    "GRANT ALL ON t_effects TO public",
    "COMMENT ON TABLE t_effects IS 'evil'",
    "REINDEX",
    "ANALYZE",
    "LOCK TABLE t_effects",
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
