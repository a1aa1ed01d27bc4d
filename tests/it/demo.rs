//! `hapax demo`, as a newcomer runs it: the figures are what the README says they are, and nothing is left
//! behind.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Checked;
use crate::support::broker::VirtualHost;
use crate::support::place::Place;
use crate::support::store::Store;
use crate::support::{children, ports, servers, wait};

const ORDERS: u64 = 2_000;
const MESSAGES: u64 = 2_600;

/// The demo builds a plugin first, and other tests may be building, too.
const PATIENCE: Duration = Duration::from_secs(300);

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A demo with a directory of its own for temporary files.
fn start(place: &Place, arguments: &[&str]) -> anyhow::Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
    command
        .args([
            "demo",
            "--orders",
            &ORDERS.to_string(),
            "--seed",
            &place.seed.to_string(),
        ])
        .args(arguments)
        .env("TMPDIR", &place.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(children::spawn(command)?)
}

async fn end(child: Child) -> anyhow::Result<Ended> {
    let pid = Pid::from_child(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = tokio::time::timeout(PATIENCE, output).await else {
        kill_process(pid, Signal::KILL)?;
        anyhow::bail!("the demo did not end");
    };
    let output = output??;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

pub async fn shows_what_it_says_with_nothing_installed(place: &Place) -> Checked {
    let ended = end(start(place, &["--json"])?).await?;
    check_figures(place, &ended)?;
    check_no_files(place)
}

pub async fn shows_the_same_on_real_servers_and_leaves_nothing_there(place: &Place) -> Checked {
    let (broker, store) = servers_of_its_own().await?;
    let servers = ["--json", "--amqp", &broker.url, "--database", &store.url];
    let ended = end(start(place, &servers)?).await?;
    check_figures(place, &ended)?;
    check_no_files(place)?;
    check_no_traces(&broker, &store).await
}

pub async fn an_interrupt_ends_its_consumers_and_removes_its_files(place: &Place) -> Checked {
    let (broker, store) = servers_of_its_own().await?;
    let servers = ["--json", "--amqp", &broker.url, "--database", &store.url];
    let demo = start(place, &servers)?;
    until_consuming(place).await?;
    kill_process(Pid::from_child(&demo), Signal::INT)?;
    let ended = end(demo).await?;
    ensure!(
        ended.code == Some(130),
        "exit code {:?}\n{}",
        ended.code,
        ended.stderr
    );
    ensure!(consumers(place)? == 0, "a consumer lives on");
    check_no_files(place)?;
    check_no_traces(&broker, &store).await
}

pub async fn when_it_is_killed_its_consumers_die_with_it(place: &Place) -> Checked {
    let demo = start(place, &["--json"])?;
    until_consuming(place).await?;
    kill_process(Pid::from_child(&demo), Signal::KILL)?;
    end(demo).await?;
    wait::until_equal("the consumers that live", 0, || async { consumers(place) }).await
}

pub async fn servers_that_are_not_there_are_named(place: &Place) -> Checked {
    let nowhere = format!("127.0.0.1:{}", ports::free());
    let amqp = format!("amqp://guest:secret@{nowhere}/%2f");
    let ended = end(start(place, &["--json", "--amqp", &amqp])?).await?;
    ensure!(
        ended.code == Some(69),
        "exit code {:?}\n{}",
        ended.code,
        ended.stderr
    );
    ensure!(ended.stderr.contains(&nowhere), "{}", ended.stderr);
    ensure!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    check_no_files(place)?;

    let database = [
        "--json",
        "--amqp",
        &amqp,
        "--database",
        "mysql://localhost/shop",
    ];
    let ended = end(start(place, &database)?).await?;
    ensure!(
        ended.code == Some(64),
        "exit code {:?}\n{}",
        ended.code,
        ended.stderr
    );
    ensure!(ended.stderr.contains("postgres://"), "{}", ended.stderr);
    Ok(())
}

/// Each of the four did what the README says.
fn check_figures(place: &Place, ended: &Ended) -> Checked {
    let Ended {
        code,
        stdout,
        stderr,
    } = ended;
    ensure!(*code == Some(0), "exit code {code:?}\n{stdout}\n{stderr}");
    let report: Value = serde_json::from_str(stdout).with_context(|| stdout.clone())?;
    let figure = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_u64)
            .with_context(|| format!("no {name} in {stdout}"))
    };
    ensure!(figure(&report, "messages")? == MESSAGES, "{stdout}");
    ensure!(figure(&report, "unique")? == ORDERS, "{stdout}");
    ensure!(figure(&report, "seed")? == place.seed, "{stdout}");
    let consumers = report
        .get("consumers")
        .and_then(Value::as_array)
        .context("no consumers")?;
    let names = consumers
        .iter()
        .map(|consumer| consumer["name"].as_str().unwrap_or_default());
    let expected = [
        "no protection",
        "flag set after the work",
        "flag set before the work",
        "Hapax",
    ];
    ensure!(names.eq(expected), "{stdout}");
    for consumer in consumers {
        ensure!(figure(consumer, "deliveries")? == MESSAGES, "{stdout}");
        ensure!(figure(consumer, "unique")? == ORDERS, "{stdout}");
        ensure!(
            figure(consumer, "killed_after")? >= MESSAGES / 2,
            "{stdout}"
        );
    }
    let [unprotected, after, before, hapax] = consumers.as_slice() else {
        anyhow::bail!("not four consumers: {stdout}");
    };
    ensure!(
        figure(unprotected, "doubled")? >= MESSAGES - ORDERS,
        "{stdout}"
    );
    ensure!(figure(unprotected, "lost")? == 0, "{stdout}");
    ensure!(
        figure(after, "doubled")? > 0 && figure(after, "lost")? == 0,
        "{stdout}"
    );
    ensure!(
        figure(before, "doubled")? == 0 && figure(before, "lost")? > 0,
        "{stdout}"
    );
    ensure!(
        figure(hapax, "doubled")? == 0 && figure(hapax, "lost")? == 0,
        "{stdout}"
    );
    ensure!(
        figure(hapax, "effects")? == ORDERS && figure(hapax, "events")? == ORDERS,
        "{stdout}"
    );
    Ok(())
}

async fn servers_of_its_own() -> anyhow::Result<(VirtualHost, Store)> {
    Ok((
        servers::rabbit().await?.create_vhost().await?,
        Store::postgres().await?,
    ))
}

/// The directories that demos have made here.
fn files(place: &Place) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&place.dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.starts_with("hapax_demo_"));
    Ok(names)
}

fn check_no_files(place: &Place) -> Checked {
    let left = files(place)?;
    ensure!(left.is_empty(), "the demo left {left:?}");
    Ok(())
}

async fn check_no_traces(broker: &VirtualHost, store: &Store) -> Checked {
    let queues = broker.queues().await?;
    ensure!(queues.is_empty(), "the demo left the queues {queues:?}");
    let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'hapax%'";
    let schemas = store.texts(schemas).await?;
    ensure!(schemas.is_empty(), "the demo left the schemas {schemas:?}");
    Ok(())
}

async fn until_consuming(place: &Place) -> Checked {
    wait::until("a consumer of the demo", PATIENCE, || async {
        Ok((consumers(place)? > 0).then_some(()))
    })
    .await
}

/// Processes of a demo that was started here, other than the demo itself: each is told of its directory.
fn consumers(place: &Place) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        count += usize::from(mentions(&line, &place.dir));
    }
    Ok(count)
}

fn mentions(line: &[u8], dir: &Path) -> bool {
    line.split(|byte| *byte == 0)
        .any(|argument| Path::new(String::from_utf8_lossy(argument).as_ref()).starts_with(dir))
}
