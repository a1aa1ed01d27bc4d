use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::order::{Action, read};
use super::*;

/// Methods of the store's contract that only look, or that only this session can see. Everything else in the
/// contract changes what another process will find, and so is a step.
const LOOKS: &[&str] = &[
    "ping",
    "begin",
    "rollback",
    "savepoint",
    "rollback_to",
    "release",
    "alive",
    "entries",
    "catalog",
    "missing_column",
    "is_plain",
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
    "clock",
    "mark_holders",
    "parked_apart",
    "stuck_sessions",
    "consumers",
    "ledger_find",
    "ledger_page",
    "waiting_tally",
    "outbox_list",
    "journal",
    // Part of a test's or an operator's preparation, and complete in itself: a second call changes nothing.
    "secret",
    "declare",
    // Held by a connection, gone with the process.
    "announce",
    "hold_mark",
    "drop_mark",
    "seize_mark",
];

/// What a step is called on, as the sources name it.
const RECEIVERS: &[&str] = &[
    "session",
    "session.upkeep()",
    "queues",
    "ok_or_else(no_queues)?",
    "channel",
];

/// Steps outside of the store.
const OTHER_STEPS: &[&str] = &["basic_ack", "basic_publish"];

/// Steps of functions that need no point of their own, each with the reason.
const EXEMPT: &[(&str, &str)] = &[
    (
        "commit/claim.rs: take_waiting calls take",
        "after-begin, and mid-claim or after-claim, which the callers pass",
    ),
    (
        "commit/claim.rs: take_started calls take",
        "after-begin, and mid-claim or after-claim, which the callers pass",
    ),
    (
        "effects.rs: execute calls execute",
        "the guest's own statements: mid-handler and mid-statement",
    ),
    (
        "effects/sql.rs: write_rows calls insert_rows",
        "the caller passes before-effects and after-effects",
    ),
    (
        "effects/sql.rs: write_chunk calls execute",
        "the caller passes before-effects and after-effects",
    ),
    (
        "lane/world.rs: claims calls claim",
        "it is rolled back: a question whether the store can do it",
    ),
    (
        "effects/state.rs: write calls state_write",
        "the caller passes before-effects and after-effects",
    ),
    (
        "host/watch.rs: mark calls consumer",
        "the caller passes after-register; a row that is there is read",
    ),
    (
        "host/watch.rs: look calls settle_parked_apart",
        "the rows are parked already; what it does not reach it does at the next look",
    ),
    (
        "host/start.rs: register calls note_retention",
        "the caller passes after-register",
    ),
    (
        "operations.rs: consumer_id calls consumer",
        "the daemon has made the row when it started",
    ),
    (
        "operations/publish.rs: publish calls publish",
        "a producer, who publishes again when he hears nothing",
    ),
    (
        "operations/publish.rs: send calls basic_publish",
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

/// Whoever adds a step adds a point: a step has one directly before or after it, and between two steps of a
/// function that run one after the other there is one.
#[test]
fn every_step_has_a_point_between_itself_and_the_next() {
    let contract = [
        (include_str!("../store.rs"), "pub trait Session"),
        (include_str!("../store/queues.rs"), "pub trait Queues"),
        (include_str!("../store/upkeep.rs"), "pub trait Upkeep"),
    ];
    let contract = contract.map(|(text, from)| text.split_once(from).unwrap().1);
    let contract = contract.concat();
    let steps = contract
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("async fn "))
        .filter_map(|line| line.split(['(', '<']).next())
        .filter(|name| !LOOKS.contains(name))
        .chain(OTHER_STEPS.iter().copied())
        .collect::<BTreeSet<_>>();
    for look in LOOKS {
        assert!(
            contract.contains(&format!("async fn {look}(")),
            "{look} is not in the contract any more"
        );
    }
    let mut without = Vec::new();
    for (path, text) in sources() {
        for function in functions(&text) {
            without.extend(
                unguarded(&steps, function)
                    .into_iter()
                    .map(|found| format!("{}: {found}", path.display())),
            );
        }
    }
    let known = EXEMPT.iter().map(|(place, _)| *place).collect::<Vec<_>>();
    let new = without
        .iter()
        .filter(|found| !known.contains(&found.as_str()))
        .collect::<Vec<_>>();
    assert!(new.is_empty(), "steps without a failpoint: {new:#?}");
    for place in known {
        assert!(
            without.iter().any(|found| found == place),
            "an exemption is not needed any more: {place}"
        );
    }
}

#[test]
fn a_step_without_a_point_is_found() {
    let steps = BTreeSet::from(["settle", "claim"]);
    let found = |body: &str| unguarded(&steps, &format!("fn f() {{ {body} }}"));
    let (settle, claim) = (
        "session\n  .settle(a).await?;",
        "session.upkeep().claim(b).await?;",
    );
    let point = "failpoint::pass(Point::AfterClaim);";
    assert_eq!(found(settle), ["f calls settle"]);
    assert_eq!(found(&format!("{point} {settle}")), [""; 0]);
    assert_eq!(found(&format!("{settle} {point}")), [""; 0]);
    // One point between two steps does for both, and one beside them does not tell them from each other.
    assert_eq!(found(&format!("{settle} {point} {claim}")), [""; 0]);
    assert_eq!(
        found(&format!("{settle} {claim} {point}")),
        ["f calls settle", "f calls claim"]
    );
    assert_eq!(
        found(&format!("{point} {settle} {claim}")),
        ["f calls claim"]
    );
    assert_eq!(
        found(&format!("{point} {settle} {claim} {point}")),
        ["f calls claim"]
    );
    // Of two branches one runs.
    let arms = format!("{point} match x {{ A => {settle} B => {claim} }}");
    assert_eq!(found(&arms), [""; 0]);
    let early = format!("{point} if x {{ return {settle} }} {claim}");
    assert_eq!(found(&early), [""; 0]);
}

/// A step or a point in the text of a function.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark<'a> {
    Point,
    Step(&'a str),
}

/// `function calls step`, for each step that is not told from its neighbours by a point.
fn unguarded(steps: &BTreeSet<&str>, function: &str) -> Vec<String> {
    let name = function.trim_start_matches("fn ").split(['(', '<']).next();
    let name = name.unwrap_or_default();
    // However the text is broken into lines. Without an argument `take` is of an option, not of a key.
    let text = function.replace("return ", "return·");
    let text = text.split_whitespace().collect::<String>();
    let text = text.replace(".take()", "");
    let mut marks = text
        .match_indices("failpoint::pass")
        .map(|(at, _)| (at, Mark::Point))
        .collect::<Vec<_>>();
    for receiver in RECEIVERS {
        for &step in steps {
            let call = format!("{receiver}.{step}(");
            let calls = text.match_indices(&call);
            // `other_session.claim(` is a call on a session as well.
            marks.extend(calls.map(|(at, _)| (at, Mark::Step(step))));
        }
    }
    marks.sort_by_key(|(at, _)| *at);

    // Whether the steps at two places run one after the other: not in two arms, and not after a return.
    let follows = |(first, _): (usize, Mark), (second, _): (usize, Mark)| {
        let returns = text[..first].ends_with("return·");
        !returns && !text[first..second].contains("=>")
    };
    let neighbour = |of: usize, others: Vec<usize>| {
        let next = others.into_iter().find(|&other| match marks[other].1 {
            Mark::Point => true,
            Mark::Step(_) => follows(marks[of.min(other)], marks[of.max(other)]),
        });
        next.map(|other| marks[other].1)
    };
    let mut found = Vec::new();
    for (index, (_, mark)) in marks.iter().enumerate() {
        let Mark::Step(step) = mark else {
            continue;
        };
        let before = neighbour(index, (0..index).rev().collect());
        let after = neighbour(index, (index + 1..marks.len()).collect());
        let guarded = match (before, after) {
            // The later one of two neighbours is to blame.
            (Some(Mark::Step(_)), _) => false,
            (before, after) => before.is_some() || after == Some(Mark::Point),
        };
        if !guarded {
            found.push(format!("{name} calls {step}"));
        }
    }
    found.dedup();
    found
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
    let begins = |at: usize| {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = text[line..at].trim().trim_end_matches("async").trim_end();
        before.is_empty() || (before.starts_with("pub") && !before.contains("//"))
    };
    let starts = text
        .match_indices("fn ")
        .map(|(at, _)| at)
        .filter(|&at| begins(at))
        .collect::<Vec<_>>();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| &text[*start..end])
        .collect()
}
