use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::order::{Action, read};
use super::*;

/// Methods of the store's contract that only look, or that only this host can see. Everything else in the
/// contract changes what another process will find, and so is a step.
const LOOKS: &[&str] = &[
    "ping",
    "rollback",
    "savepoint",
    "rollback_to",
    "release",
    "alive",
    "entries",
    "finish",
    "ledger_counts",
    "waiting_next",
    "waiting_due",
    "waiting_lock",
    "waiting_lines",
    "waiting_held",
    "replies",
    "waiting_list",
    "waiting_counts",
    "outbox_blocked",
    "outbox_depth",
    "state_get",
    "query",
    "depth",
    // Part of a test's or an operator's preparation, and complete in itself: a second call changes nothing.
    "secret",
    "declare",
    // Held by a connection, gone with the process.
    "announce",
];

/// What a step is called on, as the sources name it.
const RECEIVERS: &[&str] = &["session", "queues", "ok_or_else(no_queues)?", "channel"];

/// Steps outside of the store.
const OTHER_STEPS: &[&str] = &["basic_ack", "basic_publish"];

/// Functions that call a step and pass no point, each with the reason.
const EXEMPT: &[(&str, &str)] = &[
    (
        "commit/claim.rs: ",
        "the caller passes after-begin and after-claim",
    ),
    (
        "effects.rs: ",
        "the guest's own statements: mid-handler and mid-statement",
    ),
    (
        "effects/sql.rs: ",
        "the caller passes before-effects and after-effects",
    ),
    (
        "effects/state.rs: ",
        "the caller passes before-effects and after-effects",
    ),
    (
        "lane.rs: claims(",
        "it is rolled back: a question whether the store can do it",
    ),
    ("host/watch.rs: mark(", "the caller passes after-register"),
    (
        "operations/ledger.rs: ledger_import(",
        "an import that was interrupted is run again",
    ),
    (
        "host/start.rs: register(",
        "the caller passes after-register",
    ),
    (
        "operations.rs: consumer_id(",
        "the daemon has made the row when it started",
    ),
    (
        "operations/publish.rs: ",
        "a producer, who publishes again when he hears nothing",
    ),
];

#[test]
fn names_are_distinct_and_kebab_case() {
    let names = Point::ALL.iter().map(|point| point.name());
    assert_eq!(
        names.clone().collect::<BTreeSet<_>>().len(),
        Point::ALL.len()
    );
    for name in names {
        let plain = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(name.chars().all(plain), "{name}");
    }
}

#[test]
fn an_order_is_due_at_its_passage_and_at_no_other() {
    let orders = read("after-commit@3=kill;before-ack=stop").unwrap();
    let due = |point, key: &[u8]| {
        orders
            .iter()
            .filter_map(|order| order.due(point, key))
            .collect::<Vec<_>>()
    };
    assert_eq!(due(Point::BeforeAck, b""), [Action::Stop]);
    assert_eq!(due(Point::BeforeAck, b""), []);
    assert_eq!(due(Point::AfterCommit, b""), []);
    assert_eq!(due(Point::AfterCommit, b""), []);
    assert_eq!(due(Point::AfterCommit, b""), [Action::Kill]);
    assert_eq!(due(Point::AfterCommit, b""), []);
}

#[test]
fn an_order_for_a_key_counts_only_that_key() {
    let orders = read("mid-handler@2@key=a=b@1=kill").unwrap();
    let due = |key: &[u8]| orders[0].due(Point::MidHandler, key);
    assert_eq!(due(b"a=b@1"), None);
    assert_eq!(due(b"other"), None);
    assert_eq!(due(b"a=b@1"), Some(Action::Kill));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (text, problem) in [
        ("", "names no action"),
        ("after-commit", "names no action"),
        ("after-commit=explode", "names an unknown action `explode`"),
        ("after-lunch=kill", "names an unknown point `after-lunch`"),
        ("after-commit@0=kill", "counts passages with `0`"),
        ("after-commit@x=kill", "counts passages with `x`"),
    ] {
        let told = read(text).unwrap_err().to_string();
        assert!(told.contains(problem), "{text}: {told}");
        assert!(told.contains("unset it"), "{told}");
    }
}

#[test]
fn every_point_stands_somewhere_in_the_source() {
    let sources = files(|place| !place.starts_with("failpoint"));
    for point in Point::ALL {
        let variant = format!("Point::{point:?}");
        let stands = sources.iter().any(|(_, text)| {
            text.match_indices(&variant).any(|(at, _)| {
                // `Point::AfterStart` is not `Point::AfterStartup`.
                !text[at + variant.len()..].starts_with(|c: char| c.is_alphanumeric())
            })
        });
        assert!(stands, "{variant} is passed nowhere");
    }
}

/// Whoever adds a step adds a point: a function that changes the store or speaks to the broker passes one.
#[test]
fn every_function_with_a_step_passes_a_point() {
    let contract = concat!(
        include_str!("../store.rs"),
        include_str!("../store/queues.rs")
    );
    let sessions = contract.split_once("pub trait Session").unwrap().1;
    let steps = sessions
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("async fn "))
        .filter_map(|line| line.split(['(', '<']).next())
        .filter(|name| !LOOKS.contains(name))
        .chain(OTHER_STEPS.iter().copied())
        .collect::<BTreeSet<_>>();
    for look in LOOKS {
        assert!(
            sessions.contains(&format!("async fn {look}(")),
            "{look} is not in the contract any more"
        );
    }
    let mut without = Vec::new();
    let mut exempt = BTreeSet::new();
    for (path, text) in sources() {
        for function in functions(&text) {
            let called = steps.iter().find(|step| calls(function, step));
            let (Some(step), false) = (called, function.contains("failpoint::")) else {
                continue;
            };
            let name = function.lines().next().unwrap_or_default();
            let name = name.trim_start_matches("fn ").trim();
            let found = format!("{}: {name} calls {step}", path.display());
            match EXEMPT.iter().find(|(place, _)| found.starts_with(place)) {
                Some((place, _)) => drop(exempt.insert(*place)),
                None => without.push(found),
            }
        }
    }
    assert!(
        without.is_empty(),
        "steps without a failpoint:\n{}",
        without.join("\n")
    );
    assert_eq!(
        exempt.len(),
        EXEMPT.len(),
        "an exemption is not needed any more: {exempt:?}"
    );
}

/// Whether the function calls the step, however the call is broken into lines.
fn calls(function: &str, step: &str) -> bool {
    // Without an argument it is an option that is taken, not a key.
    let text = function.split_whitespace().collect::<String>();
    let text = text.replace(".take()", "");
    RECEIVERS
        .iter()
        .any(|receiver| text.contains(&format!("{receiver}.{step}(")))
}

/// The host's sources but the stores, which carry out the steps, and the commands, which are clients.
fn sources() -> Vec<(PathBuf, String)> {
    files(|place| {
        !["failpoint", "cli", "simulation", "store"]
            .iter()
            .any(|start| place.starts_with(start))
    })
}

/// The host's sources that are not tests, as far as they are wanted.
fn files(wanted: impl Fn(&str) -> bool) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let place = path.strip_prefix(&root).unwrap().to_owned();
            let text = place.display().to_string();
            if text.ends_with(".rs")
                && !text.ends_with("tests.rs")
                && !text.contains("/tests/")
                && wanted(&text)
            {
                found.push((place, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The text of each function, from its `fn` to the next one's.
fn functions(text: &str) -> Vec<&str> {
    let starts = text
        .match_indices("fn ")
        .map(|(at, _)| at)
        .filter(|at| {
            let line = text[..*at].rfind('\n').map_or(0, |end| end + 1);
            let before = text[line..*at].trim();
            [
                "",
                "pub",
                "async",
                "pub async",
                "pub(super)",
                "pub(super) async",
            ]
            .contains(&before)
        })
        .collect::<Vec<_>>();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| &text[*start..end])
        .collect()
}
