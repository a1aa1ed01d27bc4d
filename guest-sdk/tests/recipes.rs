//! The statements that the SDK writes by itself.

use hapax_guest::context::Dialect;
use hapax_guest::prelude::*;
use hapax_guest::sql::Transition;
use hapax_guest::testing::Message;

fn upsert(key: &str) -> Result<(), Failure> {
    sql::upsert(
        "t",
        &[("tenant", &7), ("id", &key)],
        &[("a", &1), ("b", &true)],
    )?;
    Ok(())
}

fn upsert_of_a_key(key: &str) -> Result<(), Failure> {
    sql::upsert("t", &[("id", &key)], &[])?;
    Ok(())
}

#[test]
fn an_upsert_speaks_the_dialect_of_the_store() {
    let run = Message::text("x").dialect(Dialect::Sqlite).run(upsert);
    let insert = "INSERT INTO t (tenant, id, a, b) VALUES ($1, $2, $3, $4)";
    let conflict = "ON CONFLICT (tenant, id) DO UPDATE SET a = excluded.a, b = excluded.b";
    assert_eq!(run.sql[0].statement, format!("{insert} {conflict}"));
    assert_eq!(run.sql[0].parameters, params![7, "x", 1, true]);

    let run = Message::text("x").dialect(Dialect::Mysql).run(upsert);
    let conflict = "ON DUPLICATE KEY UPDATE a = VALUES(a), b = VALUES(b)";
    assert_eq!(run.sql[0].statement, format!("{insert} {conflict}"));
}

#[test]
fn an_upsert_of_a_key_alone_leaves_the_row_that_is_there() {
    let run = Message::text("x").run(upsert_of_a_key);
    let insert = "INSERT INTO t (id) VALUES ($1)";
    assert_eq!(
        run.sql[0].statement,
        format!("{insert} ON CONFLICT (id) DO NOTHING")
    );

    let run = Message::text("x")
        .dialect(Dialect::Mysql)
        .run(upsert_of_a_key);
    assert_eq!(
        run.sql[0].statement,
        format!("{insert} ON DUPLICATE KEY UPDATE id = id")
    );
}

fn ship(found: &[&str]) -> Transition {
    let mut seen = None;
    let rows = found.iter().map(|state| params![*state]);
    let message = Message::text("o-1").affected("UPDATE", 0).rows(
        "SELECT status FROM orders WHERE id = $1",
        &["status"],
        rows,
    );
    let run = message.run(|order: &str| -> Result<(), Failure> {
        seen = Some(sql::transition(
            "orders",
            ("id", &order),
            "status",
            "paid",
            "shipped",
        )?);
        Ok(())
    });
    assert_eq!(
        run.sql[0].statement,
        "UPDATE orders SET status = $1 WHERE id = $2 AND status = $3"
    );
    assert_eq!(run.sql[0].parameters, params!["shipped", "o-1", "paid"]);
    seen.expect("the handler ran")
}

#[test]
fn a_step_that_was_not_taken_says_why() {
    assert_eq!(ship(&["shipped"]), Transition::Already);
    assert_eq!(
        ship(&["placed"]),
        Transition::Elsewhere("placed".to_owned())
    );
    assert_eq!(ship(&[]), Transition::Missing);
}

#[test]
fn a_step_that_was_taken_needs_no_second_statement() {
    let run = Message::text("o-1").run(|order: &str| -> Result<(), Failure> {
        let step = sql::transition("orders", ("id", &order), "status", "paid", "shipped")?;
        assert_eq!(step, Transition::Moved);
        Ok(())
    });
    assert_eq!(run.sql.len(), 1);
}
