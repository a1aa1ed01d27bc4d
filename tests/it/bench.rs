//! `hapax bench`: every scenario is measured and verified, and nothing is left behind. How fast anything is
//! depends on the machine, and is not looked at.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Checked;
use crate::support::place::Place;
use crate::support::store::Store;
use crate::support::{children, servers};

fn measure(place: &Place, arguments: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
    command
        .args(["bench", "--json", "--rounds", "1", "--messages", "1000"])
        .args(arguments)
        .env("TMPDIR", &place.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = children::spawn(command)?.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{stderr}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| stderr.into_owned())
}

const THROUGHPUT: [&str; 11] = [
    "drain",
    "hapax_no_outbox",
    "duplicates",
    "noop",
    "forward",
    "hapax_relay",
    "by_hand",
    "immediate",
    "round_trip",
    "by_hand_no_outbox",
    "immediate_no_outbox",
];

/// One of them, for the others take as long again.
const LATENCY: &str = "latency_500_hapax";

fn check(report: &Value, expected: &[&str]) -> Checked {
    let scenarios = report["scenarios"].as_array().context("no scenarios")?;
    let names = scenarios
        .iter()
        .filter_map(|scenario| scenario["name"].as_str())
        .collect::<Vec<_>>();
    ensure!(names == expected, "{names:?}");
    for scenario in scenarios {
        let rate = scenario["messages_per_second"].as_f64().unwrap_or_default();
        ensure!(rate > 0.0, "{scenario}");
        let latency = scenario["p99_ms"].as_f64();
        let name = scenario["name"].as_str().unwrap_or_default();
        ensure!(
            name.starts_with("latency") == latency.is_some(),
            "{scenario}"
        );
    }
    for ratio in [
        "hapax_relay/by_hand",
        "hapax_relay/forward",
        "hapax_no_outbox/drain",
        "hapax_no_outbox/by_hand_no_outbox",
        "duplicates/drain",
        "immediate/by_hand",
        "round_trip/by_hand",
    ] {
        let value = report["ratios"][ratio].as_f64().unwrap_or_default();
        ensure!(value > 0.0, "{ratio} is {value} in {report}");
    }
    Ok(())
}

pub async fn measures_every_scenario_with_nothing_installed(place: &Place) -> Checked {
    let report = measure(place, &[])?;
    check(&report, &THROUGHPUT)?;
    check_no_files(place)
}

pub async fn measures_every_scenario_on_real_servers_and_leaves_nothing_there(
    place: &Place,
) -> Checked {
    let broker = servers::rabbit().await?.create_vhost().await?;
    let store = Store::postgres().await?;
    let names = THROUGHPUT.iter().copied().chain([LATENCY]);
    let names = names.collect::<Vec<_>>();
    let only = names.join(",");
    let servers = [
        "--only",
        &only,
        "--amqp",
        &broker.url,
        "--database",
        &store.url,
    ];
    let report = measure(place, &servers)?;
    check(&report, &names)?;
    check_no_files(place)?;
    let queues = broker.queues().await?;
    ensure!(
        queues.is_empty(),
        "the benchmark left the queues {queues:?}"
    );
    let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'hapax_bench%'";
    let schemas = store.texts(schemas).await?;
    ensure!(schemas.is_empty(), "the benchmark left {schemas:?}");
    Ok(())
}

pub async fn an_unknown_scenario_is_told_which_there_are(place: &Place) -> Checked {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hapax"));
    command
        .args(["bench", "--only", "fast"])
        .env("TMPDIR", &place.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = children::spawn(command)?.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(64), "{stderr}");
    ensure!(
        stderr.contains("`fast`") && stderr.contains("hapax_relay"),
        "{stderr}"
    );
    Ok(())
}

fn check_no_files(place: &Place) -> Checked {
    for entry in std::fs::read_dir(&place.dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(
            !name.starts_with("hapax_bench"),
            "the benchmark left {name}"
        );
    }
    Ok(())
}
