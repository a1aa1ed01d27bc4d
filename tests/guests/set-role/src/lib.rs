//! Changes who the session is, and how it reads.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SET ROLE postgres",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION postgres",
    "SET LOCAL ROLE postgres",
    "SELECT set_config('role', 'postgres', false)",
    "SELECT pg_catalog.set_config('search_path', 'evil', false)",
    "SELECT \"set_config\"('search_path', 'evil', false)",
    "SET search_path = evil",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET standard_conforming_strings = off",
    "SET statement_timeout = 0",
    "RESET ALL",
    "SELECT current_setting('search_path')",
    "SHOW search_path",
    "SELECT lo_creat(-1)",
    "INSERT INTO t_effects (order_id, step) SELECT set_config('role', 'postgres', false), 9",
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
