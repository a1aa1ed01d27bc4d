//! Runs programs and reads files of the database server.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "COPY t_effects FROM PROGRAM 'touch /tmp/evil'",
    "COPY (SELECT 1) TO PROGRAM 'touch /tmp/evil'",
    "COPY t_effects TO '/tmp/evil'",
    "COPY t_effects FROM '/etc/passwd'",
    "COPY t_effects FROM STDIN",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_catalog.pg_read_binary_file('/etc/passwd')",
    "SELECT * FROM pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/evil')",
    "SELECT pg_file_write('/tmp/evil', 'sin', false)",
    "SELECT 1 INTO OUTFILE '/tmp/evil'",
    "LOAD '/tmp/evil'",
    "SELECT load_file('/etc/passwd')",
    "SELECT writefile('/tmp/evil', 'sin')",
    "SELECT pg_reload_conf()",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_terminate_backend(1)",
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
