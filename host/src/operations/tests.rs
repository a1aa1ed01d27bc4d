mod consumers;
mod edit;
mod ledger;
mod outbox;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use tempfile::TempDir;

use super::*;
use crate::config::Machine;
use crate::message::Message;
use crate::store::sqlite::SqliteStore;
use crate::store::{Claim, ClaimRule, ConsumerId, SessionOptions, Settlement, WaitingRow};
use crate::store::{Fate, Status as RowStatus};

/// A store with one consumer and what operators may find in it.
struct Place {
    operations: Operations,
    consumer: ConsumerId,
    _directory: TempDir,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let text = r#"
            [[consumer]]
            name = "points"
            queue = "orders.paid"
            plugin = "points.wasm"
            key = "body:/order_id"
        "#;
        let path = directory.path().join("hapax.toml");
        let config = config::parse(&path, text, &Machine).expect("a configuration");
        let options = SessionOptions {
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
        };
        let file = directory.path().join("hapax.db");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file, options).expect("a store"));
        store.migrate().await.expect("tables");
        let operations = Operations::new(Arc::new(config), store, Vec::new());
        let mut session = operations.store.session("test").await.expect("a session");
        let consumer = operations
            .consumer_id(&mut *session, &operations.config.consumers[0])
            .await
            .expect("a row");
        drop(session);
        Self {
            operations,
            consumer,
            _directory: directory,
        }
    }

    async fn ask(&self, request: Request) -> Result<Response, OperationError> {
        // As it goes to a daemon and back.
        let text = serde_json::to_string(&request).expect("JSON");
        let request = serde_json::from_str(&text).expect("the same request");
        let response = self.operations.execute(request).await?;
        let text = serde_json::to_string(&response).expect("JSON");
        let same = serde_json::from_str::<Response>(&text).expect("the same response");
        assert_eq!(same, response, "{text}");
        Ok(response)
    }

    /// A message that has failed under a key.
    async fn fail(&self, id: &[u8], key: &[u8], status: RowStatus, code: &str) {
        let mut session = self
            .operations
            .store
            .session("test")
            .await
            .expect("a session");
        session.begin().await.expect("a transaction");
        let rule = ClaimRule {
            consumer: self.consumer,
            plugin: &[0; 8],
            retention: None,
        };
        let claim = Claim {
            key,
            fingerprint: b"f",
            attempts: 1,
            timestamp_seconds: None,
        };
        session.claim(rule, &[claim]).await.expect("a claim");
        let fate = if status == RowStatus::Parked {
            Fate::Parked
        } else {
            Fate::Waiting
        };
        let settlement = Settlement {
            key,
            fate,
            attempts: 1,
        };
        session
            .settle(self.consumer, &[settlement])
            .await
            .expect("a fate");
        let row = WaitingRow {
            id: id.to_vec(),
            key: Some(key.to_vec()),
            fingerprint: b"f".to_vec(),
            partition: 0,
            status,
            attempts: 1,
            code: code.to_owned(),
            error: "no such user".to_owned(),
            stderr: "panicked".to_owned(),
            backtrace: "handle at src/lib.rs:9:41".to_owned(),
            plugin: vec![7; 32],
            trace_id: String::new(),
            queue: "orders.paid".to_owned(),
            message: message(b"{\"order_id\":1}"),
            withheld: None,
        };
        let due = Duration::from_secs(3600);
        session
            .waiting_put(self.consumer, &[(row, due)])
            .await
            .expect("a row");
        session
            .finish(self.consumer, &[key])
            .await
            .expect("all claims");
        session.commit().await.expect("a commit");
    }

    async fn ids(&self, filter: Filter) -> Vec<String> {
        match self.ask(Request::List(filter)).await {
            Ok(Response::List(page)) => page.entries.into_iter().map(|entry| entry.id).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn changed(&self, request: Request) -> Changed {
        match self.ask(request).await {
            Ok(Response::Changed(changed)) => changed,
            other => panic!("{other:?}"),
        }
    }

    /// All ids of a choice.
    async fn choose(&self, selection: Selection) -> Vec<String> {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let step = Step {
                selection: selection.clone(),
                after,
            };
            let Ok(Response::Choice(choice)) = self.ask(Request::Choose(step)).await else {
                panic!("nothing can be chosen");
            };
            ids.extend(choice.rows.into_iter().map(|row| row.id));
            after = choice.next;
            if after.is_none() {
                return ids;
            }
        }
    }

    /// Changes all that a selection means: how many rows were changed.
    async fn change_all(&self, change: fn(Vec<String>) -> Request, selection: Selection) -> u64 {
        let changed = self.changed(change(self.choose(selection).await)).await;
        assert_eq!(changed.gone, 0);
        changed.changed
    }

    async fn session(&self) -> Box<dyn Session> {
        let session = self.operations.store.session("test").await;
        session.expect("a session")
    }

    /// A key with a fate and nothing else.
    async fn settle(&self, key: &[u8], fingerprint: &[u8], fate: Fate) {
        let mut session = self.session().await;
        session.begin().await.expect("a transaction");
        let rule = ClaimRule {
            consumer: self.consumer,
            plugin: &[0xab; 8],
            retention: None,
        };
        let claim = Claim {
            key,
            fingerprint,
            attempts: 1,
            timestamp_seconds: None,
        };
        session.claim(rule, &[claim]).await.expect("a claim");
        let settlement = Settlement {
            key,
            fate,
            attempts: 1,
        };
        session
            .settle(self.consumer, &[settlement])
            .await
            .expect("a fate");
        session
            .finish(self.consumer, &[key])
            .await
            .expect("all claims");
        session.commit().await.expect("a commit");
    }

    async fn refused(&self, request: Request) -> String {
        match self.ask(request).await {
            Err(OperationError::Refused(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self) -> Status {
        match self.ask(Request::Status).await {
            Ok(Response::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }
}

fn message(body: &'static [u8]) -> Message {
    Message {
        exchange: String::new(),
        routing_key: "orders.paid".to_owned(),
        properties: BasicProperties::default().with_message_id("m-1".into()),
        body: Bytes::from_static(body),
    }
}

fn parked() -> Filter {
    Filter {
        status: Some("parked".into()),
        limit: 10,
        ..Filter::default()
    }
}

/// The whole id that four digits make up.
fn one(digits: &str) -> Vec<String> {
    vec![digits.repeat(16)]
}

fn step(selection: Selection) -> Step {
    Step {
        selection,
        after: None,
    }
}

fn all(code: Option<&str>) -> Selection {
    Selection::Matching {
        consumer: None,
        code: code.map(str::to_owned),
        key_hex: None,
        since: None,
        until: None,
    }
}

#[tokio::test]
async fn a_list_shows_what_the_filter_means() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    place
        .fail(&[0xbb; 32], b"\xff\x00", RowStatus::Parked, "trap")
        .await;
    place
        .fail(&[0xcc; 32], b"o-3", RowStatus::Retry, "retry")
        .await;

    assert_eq!(place.ids(parked()).await.len(), 2);
    assert_eq!(
        place
            .ids(Filter {
                limit: 10,
                ..Filter::default()
            })
            .await
            .len(),
        3
    );
    let of_code = Filter {
        code: Some("trap".into()),
        ..parked()
    };
    assert_eq!(place.ids(of_code).await, [hex::encode([0xbb; 32])]);
    let of_key = Filter {
        key_hex: Some("ff00".into()),
        ..parked()
    };
    assert_eq!(place.ids(of_key).await, [hex::encode([0xbb; 32])]);
    let cut = place
        .ask(Request::List(Filter {
            limit: 1,
            ..parked()
        }))
        .await;
    assert!(matches!(cut, Ok(Response::List(Page { more: true, entries })) if entries.len() == 1));
}

#[tokio::test]
async fn a_consumer_that_does_not_exist_is_not_an_empty_list() {
    let place = Place::new().await;
    let filter = Filter {
        consumer: Some("pionts".into()),
        ..parked()
    };
    let text = place.refused(Request::List(filter)).await;
    assert!(
        text.contains("no consumer `pionts`") && text.contains("there is: points"),
        "{text}"
    );
    let selection = Selection::Matching {
        consumer: Some("pionts".into()),
        code: None,
        key_hex: None,
        since: None,
        until: None,
    };
    place.refused(Request::Choose(step(selection))).await;
}

#[tokio::test]
async fn a_message_is_shown_whole_by_the_beginning_of_its_id() {
    let place = Place::new().await;
    place
        .fail(&[0xab; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    for prefix in ["abab", "ABABA", &"ab".repeat(32)] {
        let Ok(Response::Show(shown)) = place.ask(Request::Show(prefix.to_owned())).await else {
            panic!("{prefix} was not found");
        };
        assert_eq!(shown.entry.key.as_deref(), Some("o-1"));
        assert_eq!(shown.backtrace, "handle at src/lib.rs:9:41");
        let whole = Message::try_from(shown.message.clone()).expect("a message");
        assert_eq!(whole, message(b"{\"order_id\":1}"));
    }
}

#[tokio::test]
async fn an_id_that_is_none_unknown_or_ambiguous_is_refused_and_nothing_changes() {
    let place = Place::new().await;
    place
        .fail(&[0xab; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    let mut twin = [0xab; 32];
    twin[31] = 0;
    place
        .fail(&twin, b"o-2", RowStatus::Parked, "rejected")
        .await;

    let ambiguous = place.refused(Request::Show("abab".into())).await;
    assert!(ambiguous.contains("the beginning of 2 ids"), "{ambiguous}");
    assert!(
        place
            .refused(Request::Show("ab".into()))
            .await
            .contains("is not an id")
    );
    assert!(
        place
            .refused(Request::Show("zzzz\u{1b}[2J".into()))
            .await
            .contains("\\u{1b}")
    );
    let both = Selection::Ids(vec![hex::encode([0xab; 32]), "0000".into(), "x".into()]);
    let text = place.refused(Request::Choose(step(both))).await;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(place.ids(parked()).await.len(), 2);
}

#[tokio::test]
async fn a_replayed_message_is_due_and_its_key_waits() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    let changed = place.changed(Request::Replay(one("aaaa"))).await;
    assert_eq!(
        changed,
        Changed {
            changed: 1,
            ..Changed::default()
        }
    );
    assert_eq!(place.ids(parked()).await.len(), 0);
    let mut session = place
        .operations
        .store
        .session("test")
        .await
        .expect("a session");
    let next = session
        .waiting_next(place.consumer)
        .await
        .expect("an answer");
    assert_eq!(next, Some(Duration::ZERO));
    let entry = session
        .entries(place.consumer, &[b"o-1"])
        .await
        .expect("an answer");
    assert_eq!(
        entry[0].as_ref().map(|entry| entry.fate),
        Some(Fate::Waiting)
    );
}

#[tokio::test]
async fn a_message_that_waits_for_its_retry_is_the_hosts() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Retry, "retry")
        .await;
    let named = step(Selection::Ids(vec!["aaaa".into()]));
    let text = place.refused(Request::Choose(named)).await;
    assert!(
        text.contains("not parked") && text.contains("`retry`"),
        "{text}"
    );
    for request in [Request::Replay(one("aaaa")), Request::Discard(one("aaaa"))] {
        let changed = place.changed(request).await;
        assert_eq!((changed.changed, changed.gone), (0, 1));
    }
}

#[tokio::test]
async fn what_is_parked_after_the_choice_is_not_changed_with_it() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    for change in [
        Request::Replay as fn(Vec<String>) -> Request,
        Request::Discard,
    ] {
        let chosen = place.choose(all(None)).await;
        place
            .fail(&[0xbb; 32], b"o-2", RowStatus::Parked, "rejected")
            .await;
        assert_eq!(place.changed(change(chosen)).await.changed, 1);
        assert_eq!(place.ids(parked()).await, [hex::encode([0xbb; 32])]);
        place.changed(Request::Discard(one("bbbb"))).await;
        place
            .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
            .await;
    }
}

#[tokio::test]
async fn a_bulk_change_takes_every_parked_row_of_the_code_and_no_other() {
    let place = Place::new().await;
    // More than one step.
    for number in 0..450_u16 {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        place
            .fail(&id, &number.to_be_bytes(), RowStatus::Parked, "rejected")
            .await;
    }
    place
        .fail(&[0xaa; 32], b"other", RowStatus::Parked, "trap")
        .await;
    place
        .fail(&[0xbb; 32], b"waiting", RowStatus::Retry, "rejected")
        .await;

    let tally = Tally {
        consumer: "points".into(),
        code: "rejected".into(),
        rows: 450,
    };
    assert_eq!(
        place.ask(Request::Tally(all(Some("rejected")))).await,
        Ok(Response::Tally(vec![tally]))
    );
    let rejected = all(Some("rejected"));
    assert_eq!(place.change_all(Request::Discard, rejected).await, 450);
    assert_eq!(place.ids(parked()).await, [hex::encode([0xaa; 32])]);
    assert_eq!(place.change_all(Request::Replay, all(None)).await, 1);
    let status = place.status().await;
    assert_eq!(status.consumers[0].ledger.get("discarded"), Some(&450));
}

#[tokio::test]
async fn status_counts_fates_codes_and_what_is_in_the_queue() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    place
        .fail(&[0xbb; 32], b"o-2", RowStatus::Retry, "retry")
        .await;
    assert_eq!(place.status().await.consumers[0].ready, None);
    let published = place
        .ask(Request::Publish(vec![Wire::from(&message(b"1"))]))
        .await;
    assert_eq!(published, Ok(Response::Published(vec![Answer::Confirmed])));

    let status = place.status().await;
    let consumer = &status.consumers[0];
    assert_eq!(consumer.ready, Some(1));
    assert_eq!((consumer.up, &consumer.plugin), (None, &None));
    assert_eq!(consumer.ledger.get("parked"), Some(&1));
    assert_eq!(consumer.waiting["parked"]["rejected"], 1);
    assert_eq!(consumer.waiting["retry"]["retry"], 1);
    assert_eq!((status.outbox.rows, status.daemon), (0, false));
    assert!(status.store.starts_with("sqlite:") && Path::new(&status.store[7..]).is_absolute());
}

#[tokio::test]
async fn a_message_to_a_queue_that_is_not_there_keeps_its_block_back() {
    let place = Place::new().await;
    let good = Wire::from(&message(b"1"));
    let lost = Wire::from(&Message {
        routing_key: "nowhere".into(),
        ..message(b"2")
    });
    let answers = place
        .ask(Request::Publish(vec![good.clone(), lost, good]))
        .await;
    let Ok(Response::Published(answers)) = answers else {
        panic!("{answers:?}")
    };
    assert!(
        matches!(&answers[1], Answer::Refused(why) if why.contains("`nowhere`")),
        "{answers:?}"
    );
    assert_eq!(
        (&answers[0], &answers[2]),
        (&Answer::NotSent, &Answer::NotSent)
    );
    assert_eq!(place.status().await.consumers[0].ready, Some(0));
}
