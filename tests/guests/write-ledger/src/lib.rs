//! Writes and reads the tables of the host.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "DELETE FROM hapax_ledger",
    "UPDATE hapax_ledger SET fate = 4",
    "INSERT INTO hapax_ledger (consumer) VALUES (1)",
    "DELETE FROM public.hapax_ledger",
    "DELETE FROM \"hapax_ledger\"",
    "DELETE FROM HAPAX_LEDGER",
    "DELETE FROM main.hapax_ledger",
    "SELECT key FROM hapax_ledger",
    "SELECT body FROM hapax_waiting FOR UPDATE",
    "WITH gone AS (DELETE FROM hapax_ledger RETURNING key) SELECT key FROM gone",
    "INSERT INTO t_effects (order_id, step) SELECT body, 9 FROM hapax_outbox",
    "UPDATE t_effects SET step = 9 FROM hapax_ledger",
    "DELETE FROM t_effects USING hapax_ledger",
    "SELECT value FROM hapax_meta",
    "INSERT INTO hapax_outbox (consumer) VALUES (1)",
    "UPDATE hapax_state SET value = ''",
    "DELETE FROM hapax_consumer",
    "SELECT 1 FROM t_parents JOIN hapax_ledger ON true",
    "SELECT (SELECT count(*) FROM hapax_ledger)",
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
