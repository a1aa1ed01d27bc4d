//! Ends the transaction, or begins another one, in every disguise.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "COMMIT",
    "commit",
    "CoMmIt",
    " \n\tCOMMIT",
    "COMMIT;",
    "COMMIT WORK",
    "COMMIT AND CHAIN",
    "COMMIT AND NO CHAIN",
    "END",
    "END TRANSACTION",
    "ROLLBACK",
    "ABORT",
    "ROLLBACK TO SAVEPOINT hapax_message",
    "RELEASE SAVEPOINT hapax_message",
    "SAVEPOINT mine",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "START TRANSACTION",
    "PREPARE TRANSACTION 'sin'",
    "COMMIT PREPARED 'sin'",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "/* harmless */ COMMIT",
    "-- harmless\nCOMMIT",
    "/*! COMMIT */",
    "/*M! COMMIT */",
    "COMMIT /* harmless */",
    "CO/**/MMIT",
    "SELECT 1; COMMIT",
    "SELECT 1;\nCOMMIT;",
    "INSERT INTO t_effects (order_id, step) VALUES ('sin', 9); COMMIT",
    "SELECT ';'; COMMIT",
    "SELECT 'x\\'; COMMIT; --'",
    "DO $$ BEGIN COMMIT; END $$",
    "DO 'BEGIN COMMIT; END'",
    "DO LANGUAGE plpgsql $body$ BEGIN COMMIT; END $body$",
    "PREPARE sin AS COMMIT",
    "PREPARE sin AS SELECT 1",
    "EXECUTE sin",
    "EXECUTE IMMEDIATE 'COMMIT'",
    "DEALLOCATE ALL",
    "CALL commit_now()",
    "CREATE FUNCTION evil_commit() RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$",
    "CREATE PROCEDURE evil_commit() LANGUAGE sql AS 'COMMIT'",
    "EXPLAIN ANALYZE COMMIT",
    "WITH x AS (SELECT 1) COMMIT",
    "SELECT commit()",
    "DISCARD ALL",
    "VACUUM",
    "SELECT query_to_xml('COMMIT', true, true, '')",
    "INSERT OR ROLLBACK INTO t_effects (order_id, step) VALUES ('sin', 9)",
    "\u{feff}COMMIT",
    "\u{a0}COMMIT",
    "COMMIT\0",
    "SELECT 1\0; COMMIT",
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
