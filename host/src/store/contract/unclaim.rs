//! Claims that a transaction gives up before it commits.

use super::ledger::fates;
use super::{Fixture, claim, commit_keys, in_every_dialect, in_memory, rule};
use crate::store::Fate;

in_every_dialect! {
    a_claim_that_is_given_up_was_never_made
}

in_memory! {
    a_claim_that_is_given_up_was_never_made
}

async fn a_claim_that_is_given_up_was_never_made(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"before"]).await;
    session.begin().await.unwrap();
    let claims = [claim(b"a"), claim(b"b"), claim(b"before"), claim(b"c")];
    let new = session.claim(rule(consumer), &claims).await.unwrap();
    assert_eq!(new, [true, true, false, true]);
    let keys: [&[u8]; 2] = [b"b", b"c"];
    assert_eq!(session.unclaim(consumer, &keys).await.unwrap(), 2);
    // Neither twice nor what others have committed.
    let keys: [&[u8]; 2] = [b"c", b"before"];
    assert_eq!(session.unclaim(consumer, &keys).await.unwrap(), 0);
    let all: [&[u8]; 3] = [b"a", b"b", b"c"];
    let finished = session.finish(consumer, &all).await.unwrap();
    assert_eq!(finished.claims, 1);
    session.commit().await.unwrap();
    let keys: [&[u8]; 4] = [b"a", b"b", b"before", b"c"];
    let committed = Some(Fate::Committed);
    assert_eq!(
        fates(&mut *session, consumer, &keys).await,
        [committed, None, committed, None]
    );
    commit_keys(&mut *session, consumer, &[b"b", b"c"]).await;
}
