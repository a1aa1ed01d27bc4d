//! The small key-value table.

use std::sync::Arc;

use super::{Fixture, in_every_dialect, in_memory};
use crate::store::Expect;

in_every_dialect! {
    a_value_has_a_version_that_grows
    a_write_that_expects_something_else_is_not_made
    state_keys_are_bytes_and_values_may_be_anything
    two_lanes_that_count_lose_nothing
}

in_memory! {
    a_value_has_a_version_that_grows
    a_write_that_expects_something_else_is_not_made
    state_keys_are_bytes_and_values_may_be_anything
    two_lanes_that_count_lose_nothing
}

async fn a_value_has_a_version_that_grows(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    assert_eq!(session.state_get(consumer, "k").await.unwrap(), None);
    for version in 1..=3 {
        assert!(
            session
                .state_write(consumer, "k", Some(b"v"), Expect::Anything)
                .await
                .unwrap()
        );
        assert_eq!(
            session.state_get(consumer, "k").await.unwrap(),
            Some((b"v".to_vec(), version))
        );
    }
    assert!(
        session
            .state_write(consumer, "k", None, Expect::Anything)
            .await
            .unwrap()
    );
    assert_eq!(session.state_get(consumer, "k").await.unwrap(), None);
    assert!(
        session
            .state_write(consumer, "k", None, Expect::Anything)
            .await
            .unwrap()
    );
}

async fn a_write_that_expects_something_else_is_not_made(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let some = Some(&b"v"[..]);
    assert!(
        !session
            .state_write(consumer, "k", some, Expect::Version(1))
            .await
            .unwrap()
    );
    assert!(
        !session
            .state_write(consumer, "k", None, Expect::Version(1))
            .await
            .unwrap()
    );
    assert!(
        session
            .state_write(consumer, "k", None, Expect::Absent)
            .await
            .unwrap()
    );
    assert!(
        session
            .state_write(consumer, "k", some, Expect::Absent)
            .await
            .unwrap()
    );
    assert!(
        !session
            .state_write(consumer, "k", some, Expect::Absent)
            .await
            .unwrap()
    );
    assert!(
        !session
            .state_write(consumer, "k", None, Expect::Absent)
            .await
            .unwrap()
    );
    assert!(
        !session
            .state_write(consumer, "k", some, Expect::Version(2))
            .await
            .unwrap()
    );
    assert!(
        !session
            .state_write(consumer, "k", some, Expect::Version(u64::MAX))
            .await
            .unwrap()
    );
    assert!(
        session
            .state_write(consumer, "k", Some(b"w"), Expect::Version(1))
            .await
            .unwrap()
    );
    assert_eq!(
        session.state_get(consumer, "k").await.unwrap(),
        Some((b"w".to_vec(), 2))
    );
    assert!(
        !session
            .state_write(consumer, "k", None, Expect::Version(1))
            .await
            .unwrap()
    );
    assert!(
        session
            .state_write(consumer, "k", None, Expect::Version(2))
            .await
            .unwrap()
    );
    assert_eq!(session.state_get(consumer, "k").await.unwrap(), None);
}

async fn state_keys_are_bytes_and_values_may_be_anything(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    for (index, key) in ["a", "A", "a ", "a\0", "", "ä"].into_iter().enumerate() {
        let value = [index as u8, 0, 0xff];
        assert!(
            session
                .state_write(consumer, key, Some(&value), Expect::Absent)
                .await
                .unwrap()
        );
        assert_eq!(
            session.state_get(consumer, key).await.unwrap(),
            Some((value.to_vec(), 1))
        );
    }
    assert!(
        session
            .state_write(consumer, "empty", Some(b""), Expect::Absent)
            .await
            .unwrap()
    );
    assert_eq!(
        session.state_get(consumer, "empty").await.unwrap(),
        Some((Vec::new(), 1))
    );
}

async fn two_lanes_that_count_lose_nothing(fixture: &Fixture) {
    const EACH: u64 = 50;
    let consumer = fixture.consumer().await;
    fixture
        .session()
        .await
        .state_write(consumer, "n", Some(&[0; 8]), Expect::Absent)
        .await
        .unwrap();
    let lanes: Vec<_> = (0..2)
        .map(|_| {
            let (store, name) = (Arc::clone(&fixture.store), fixture.name.clone());
            tokio::spawn(async move {
                let mut session = store.session(&name).await.unwrap();
                for _ in 0..EACH {
                    session.begin().await.unwrap();
                    let (value, version) = session.state_get(consumer, "n").await.unwrap().unwrap();
                    let next = u64::from_be_bytes(value.try_into().unwrap()) + 1;
                    let expect = Expect::Version(version);
                    let written = session
                        .state_write(consumer, "n", Some(&next.to_be_bytes()), expect)
                        .await;
                    assert!(written.unwrap());
                    session.commit().await.unwrap();
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.unwrap();
    }
    let (value, version) = fixture
        .session()
        .await
        .state_get(consumer, "n")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (u64::from_be_bytes(value.try_into().unwrap()), version),
        (2 * EACH, 2 * EACH + 1)
    );
}
