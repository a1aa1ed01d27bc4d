//! Handlers that are out to break their host: one component for each sin, in a batch between good neighbours.
//!
//! On PostgreSQL the messages come from RabbitMQ, on SQLite from the embedded broker, so that every kind of host
//! meets every guest. Whatever the guest does: its message ends with a code of its own and leaves nothing behind,
//! its neighbours commit, and the host goes on in bounded memory.

mod component;
mod ground;
mod refused;

use std::io::ErrorKind;
use std::net::TcpListener;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::Checked;
use crate::support::host::UNHURRIED;
use crate::support::place::Place;
use crate::support::scene::Scene;

use ground::{Aftermath, Ground};
pub use refused::wasi_http;

/// Runs a guest whose one sin is switched on with `true`.
async fn run(place: &Place, scene: Scene, guest: &str, code: &str) -> anyhow::Result<Aftermath> {
    let mut ground = Ground::new(place, scene, guest)?;
    if code != "cpu-limit" {
        ground = ground.limits(UNHURRIED);
    }
    ground.run(&[json!(true)], code).await
}

/// Runs a guest with a list of statements, each of which is to be refused, and insists that there are `count`.
async fn run_statements(place: &Place, scene: Scene, guest: &str, count: usize) -> Checked {
    let ground = Ground::new(place, scene, guest)?;
    run_numbers(ground, count, "sql-refused").await
}

/// The same for statements that end with another code.
async fn run_numbers(ground: Ground<'_>, count: usize, code: &str) -> Checked {
    run_codes(ground, &vec![code; count]).await
}

/// The same where each statement has a code of its own.
async fn run_codes(ground: Ground<'_>, codes: &[&str]) -> Checked {
    let count = codes.len();
    let sins: Vec<Value> = (0..count).map(|number| json!(number)).collect();
    let aftermath = ground.run_each(&sins, codes).await?;
    ensure!(
        aftermath.after_the_last == "there are no more of them",
        "the guest knows more than {count} statements"
    );
    Ok(())
}

macro_rules! sins {
    ($($guest:ident: $code:literal;)*) => {
        $(pub async fn $guest(place: &Place, scene: Scene) -> Checked {
            run(place, scene, stringify!($guest), $code).await.map(drop)
        })*
    };
}

sins! {
    spin: "cpu-limit";
    spin_in_host_calls: "cpu-limit";
    memory_bomb: "memory-limit";
    outbox_flood: "outbox-limit";
    ten_thousand_statements: "sql-limit";
    huge_row_set: "sql-limit";
    huge_statement: "sql-refused";
}

/// The place in the sources is named, too.
pub async fn recursion(place: &Place, scene: Scene) -> Checked {
    let aftermath = run(place, scene, "recursion", "trap").await?;
    let [parked] = aftermath.parked.as_slice() else {
        anyhow::bail!("not one parked message: {:?}", aftermath.parked);
    };
    ensure!(
        parked
            .backtrace
            .contains("recurse at recursion/src/lib.rs:"),
        "{parked:?}"
    );
    Ok(())
}

macro_rules! statements {
    ($($guest:ident: $count:literal;)*) => {
        $(pub async fn $guest(place: &Place, scene: Scene) -> Checked {
            run_statements(place, scene, stringify!($guest), $count).await
        })*
    };
}

statements! {
    commit: 55;
    ddl: 21;
    set_role: 16;
    copy_program: 18;
    dblink: 10;
    advisory_lock: 13;
    pg_sleep: 11;
    write_ledger: 19;
    read_other_consumer: 22;
    attach: 20;
    cte_bomb: 3;
}

/// On SQLite the deadline comes between two calls of a function, and the one connection waits for both.
pub async fn endless_search(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "endless_search")?;
    run_numbers(ground, 6, "sql-limit").await
}

/// The value is made in the database, or not at all; the host's memory does not see it.
pub async fn huge_value(place: &Place, scene: Scene) -> Checked {
    // SQLite measures a value when it is made, and what two long ones would cost together is known before.
    let product = if scene.store.is_postgres() {
        "sql-limit"
    } else {
        "sql-refused"
    };
    let ground = Ground::new(place, scene, "huge_value")?.limits(r#"{ wall = "60s" }"#);
    run_codes(ground, &["sql-limit", product, "sql-limit", "sql-limit"]).await
}

/// With every grant that a call in disguise could hide behind, and a function of the owner's that takes a row.
pub async fn call_in_disguise(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    for table in ["t_parents", "t_effects"] {
        let archive = format!(
            "CREATE FUNCTION archive({table}) RETURNS TEXT LANGUAGE sql AS \
             'UPDATE t_counters SET total = total + 1 RETURNING id'"
        );
        scene.store.execute(&archive).await?;
    }
    let ground = Ground::new(place, scene, "call_in_disguise")?
        .functions(r#"["unnest", "generate_series"]"#);
    run_numbers(ground, 14, "sql-refused").await
}

/// RabbitMQ would send the copies; the embedded broker knows no such headers, and refuses them all the same.
pub async fn carbon_copy(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "carbon_copy")?;
    let aftermath = ground.run(&[json!("CC"), json!("BCC")], "rejected").await?;
    for parked in &aftermath.parked {
        ensure!(
            parked.error.contains("sends copies to other queues"),
            "{parked:?}"
        );
    }
    Ok(())
}

pub async fn table_bomb(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "table_bomb")?.silent();
    ground.run(&[json!(true)], "memory-limit").await.map(drop)
}

/// What was written is kept up to a bound, and cannot hurt a table or a terminal.
pub async fn stderr_flood(place: &Place, scene: Scene) -> Checked {
    const KEPT_BYTES: usize = 64 * 1024;
    let ground = Ground::new(place, scene, "stderr_flood")?;
    // It is the flood that this is about, not how fast a host without optimisation takes it.
    let ground = ground.limits(r#"{ cpu = "4s" }"#);
    let aftermath = ground.run(&[json!(true)], "trap").await?;
    let [parked] = aftermath.parked.as_slice() else {
        anyhow::bail!("not one parked message: {:?}", aftermath.parked);
    };
    // A byte that is no text becomes a character of three.
    ensure!(
        parked.stderr.len() <= 3 * KEPT_BYTES,
        "{} bytes",
        parked.stderr.len()
    );
    ensure!(parked.stderr.ends_with("more bytes dropped]"));
    ensure!(!parked.stderr.contains('\0'));
    ensure!(
        aftermath.log_bytes < 2_000_000,
        "the host has logged {} bytes",
        aftermath.log_bytes
    );
    Ok(())
}

/// In the log as people read it, each line is the host's own, and nothing in it does anything to a terminal.
pub async fn forged_log(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "forged_log")?.text_log();
    let aftermath = ground.run(&[json!("reject")], "rejected").await?;
    let log = &aftermath.log;
    for said in ["forged line", "OWNED"] {
        // The handler's line, its field, both outputs, and the reason of the rejection.
        ensure!(log.matches(said).count() >= 5, "{said}: {log}");
    }
    let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    ensure!(!log.contains(steers), "{log:?}");
    for line in log.lines() {
        let forged = line.starts_with("FORGED") || line.starts_with("2026-01-01");
        ensure!(!forged, "{line}");
    }
    Ok(())
}

/// The host goes on, and says once what it refused.
pub async fn hostile_debug_information(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "hostile_debug_information")?;
    let sins = [json!(true), json!(true)];
    let aftermath = ground.limits(UNHURRIED).run(&sins, "trap").await?;
    let said = aftermath
        .log
        .matches("Debug information of a plugin was refused")
        .count();
    ensure!(said == 1, "said {said} times: {}", aftermath.log);
    for parked in &aftermath.parked {
        ensure!(
            parked.backtrace.contains("(debug information was refused"),
            "{parked:?}"
        );
    }
    Ok(())
}

/// Somebody listens where the guest calls, so that a call that got through would be seen.
pub async fn open_socket(place: &Place, scene: Scene) -> Checked {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let udp = std::net::UdpSocket::bind(listener.local_addr()?)?;
    udp.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let ground = Ground::new(place, scene, "open_socket")?;
    let aftermath = ground.run(&[json!(port)], "rejected").await?;
    let told = aftermath.only_error()?;
    ensure!(
        told.matches("Err(").count() == 4 && !told.contains("Ok("),
        "{told}"
    );
    let heard = listener.accept().map(drop);
    ensure!(heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    let heard = udp.recv(&mut [0; 8]);
    ensure!(heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    Ok(())
}

pub async fn open_file(place: &Place, scene: Scene) -> Checked {
    let bait = place.dir.join("bait");
    std::fs::write(&bait, "a secret")?;
    let path = bait.to_str().context("the path is not UTF-8")?;
    let ground = Ground::new(place, scene, "open_file")?;
    let aftermath = ground.run(&[json!(path)], "rejected").await?;
    let told = aftermath.only_error()?;
    ensure!(
        told.matches("Err(").count() == 3 && !told.contains("Ok("),
        "{told}"
    );
    ensure!(
        told.ends_with(" 0"),
        "it knows variables or arguments: {told}"
    );
    ensure!(!place.dir.join("bait.sin").exists());
    Ok(())
}

/// The clock stands still, and what is drawn is equal in every attempt.
pub async fn probe_clock_and_random(place: &Place, scene: Scene) -> Checked {
    let ground = Ground::new(place, scene, "probe_clock_and_random")?;
    let ground = ground.limits(r#"{ cpu = "4s" }"#);
    let aftermath = ground.run(&[json!(true)], "trap").await?;
    let drawn: Vec<&str> = aftermath
        .log
        .split("lots (")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(lots, _)| lots)
        .collect();
    ensure!(drawn.len() == 2, "{drawn:?} were drawn in two attempts");
    ensure!(drawn[0] == drawn[1], "{drawn:?}");
    Ok(())
}

/// Each message, the neighbours and the second attempt too, finds the memory as it was at the beginning.
pub async fn call_again_after_trap(place: &Place, scene: Scene) -> Checked {
    let aftermath = run(place, scene, "call_again_after_trap", "trap").await?;
    let told = aftermath.only_error()?;
    ensure!(told.ends_with("run 1 of this instance"), "{told}");
    Ok(())
}
