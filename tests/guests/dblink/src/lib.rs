//! Reaches for the database on another connection, where it could commit by itself.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT dblink_exec('dbname=postgres', 'COMMIT')",
    "SELECT * FROM dblink('dbname=postgres', 'SELECT 1') AS x (n integer)",
    "SELECT dblink_connect('dbname=postgres')",
    "SELECT public.dblink_send_query('x', 'COMMIT')",
    "SELECT \"dblink_exec\"('dbname=postgres', 'COMMIT')",
    "WITH x AS (SELECT dblink_exec('dbname=postgres', 'COMMIT') AS y) SELECT y FROM x",
    "INSERT INTO t_effects (order_id, step) VALUES (dblink_exec('dbname=postgres', 'COMMIT'), 9)",
    "SELECT pg_background_launch('COMMIT')",
    "CREATE SERVER evil FOREIGN DATA WRAPPER postgres_fdw",
    "IMPORT FOREIGN SCHEMA public FROM SERVER evil INTO public",
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
