//! What does it cost to claim and finish a batch of new keys, and does it matter how many keys the ledger knows?
//!
//!     cargo bench --bench ledger                                     SQLite
//!     DATABASE_URL=postgres://… cargo bench --bench ledger           Postgres, in a schema that it makes and drops
//!     … cargo bench --bench ledger -- --rows 20000000                beside a ledger of so many keys, after an empty one

#[path = "figures.rs"]
mod figures;

use std::time::{Duration, Instant};

use figures::Figures;
use hapax::store::postgres::PostgresStore;
use hapax::store::sqlite::SqliteStore;
use hapax::store::{Claim, ClaimRule, ConsumerId, Session, SessionOptions, Store};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Keys in one transaction.
const BATCHES: [usize; 4] = [1, 16, 64, 256];

/// Keys that each figure is taken over.
const KEYS: usize = 20_000;

const OPTIONS: SessionOptions = SessionOptions {
    statement_timeout: Duration::from_secs(600),
    lock_timeout: Duration::from_secs(5),
    idle_timeout: Duration::from_secs(60),
};

#[tokio::main]
async fn main() {
    match std::env::var("DATABASE_URL") {
        Ok(url) => postgres(&url).await,
        Err(_) => sqlite().await,
    }
}

async fn sqlite() {
    let place = tempfile::tempdir().expect("a directory for temporary files");
    let store = SqliteStore::open(&place.path().join("bench.db"), OPTIONS).expect("a store");
    measure(&store, "SQLite").await;
}

async fn postgres(url: &str) {
    let schema = format!("hapax_bench_{:08x}", fastrand::u32(..));
    let mut own = PgConnection::connect(url)
        .await
        .expect("the database answers");
    run(&mut own, format!("CREATE SCHEMA {schema}")).await;
    let store = PostgresStore::new(url, &schema, OPTIONS).expect("a store");
    let empty = measure(&store, "Postgres").await;
    if let Some(rows) = rows() {
        println!("filling the ledger with {rows} keys");
        let fill = format!(
            "INSERT INTO {schema}.hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
             SELECT 1, decode(md5(n::text), 'hex'), 1, 1, decode(md5(n::text), 'hex'), '\\x0011223344556677', \
             now() + interval '7 days' FROM generate_series(1, {rows}) AS n"
        );
        run(&mut own, fill).await;
        run(&mut own, format!("ANALYZE {schema}.hapax_ledger")).await;
        run(&mut own, "CHECKPOINT".to_owned()).await;
        let full = measure(&store, &format!("Postgres, {rows} keys")).await;
        println!(
            "keys a second in batches of 256: {:.2} of the empty ledger's",
            full / empty
        );
    }
    run(&mut own, format!("DROP SCHEMA {schema} CASCADE")).await;
}

async fn run(connection: &mut PgConnection, statement: String) {
    connection
        .execute(AssertSqlSafe(statement))
        .await
        .expect("the statement is good");
}

/// The number after `--rows`.
fn rows() -> Option<u64> {
    std::env::args()
        .skip_while(|argument| argument != "--rows")
        .nth(1)
        .map(|rows| rows.parse().expect("--rows takes a number"))
}

/// Shows each batch size; returns the keys a second of the largest.
async fn measure(store: &dyn Store, name: &str) -> f64 {
    store.migrate().await.expect("its tables");
    let mut session = store.session("hapax bench").await.expect("a session");
    let row = session
        .consumer("bench", "body:/id", "body")
        .await
        .expect("a consumer");
    let mut rate = 0.0;
    for batch in BATCHES {
        let mut figures = Figures::new(format!("{name}: claim, finish, commit {batch}"));
        let started = Instant::now();
        for _ in 0..KEYS / batch {
            let begun = Instant::now();
            claim(session.as_mut(), row.id, batch).await;
            figures.add(begun.elapsed());
        }
        rate = (KEYS / batch * batch) as f64 / started.elapsed().as_secs_f64();
        figures.show();
        println!("{:<58} {rate:.0} keys a second", "");
    }
    rate
}

async fn claim(session: &mut dyn Session, consumer: ConsumerId, batch: usize) {
    let mut keys: Vec<[u8; 32]> = (0..batch)
        .map(|_| Sha256::digest(fastrand::u128(..).to_be_bytes()).into())
        .collect();
    keys.sort_unstable();
    let claims: Vec<Claim<'_>> = keys
        .iter()
        .map(|key| Claim {
            key: &key[..16],
            fingerprint: &key[16..],
            attempts: 1,
            timestamp_seconds: None,
        })
        .collect();
    let rule = ClaimRule {
        consumer,
        plugin: &[0; 8],
        retention: Some(Duration::from_secs(7 * 24 * 3_600)),
    };
    session.begin().await.expect("a transaction");
    let new = session.claim(rule, &claims).await.expect("an answer");
    assert!(new.iter().all(|new| *new), "the keys are random");
    let names: Vec<&[u8]> = claims.iter().map(|claim| claim.key).collect();
    let finished = session.finish(consumer, &names).await.expect("an answer");
    assert_eq!(finished.claims, batch as u64);
    session.commit().await.expect("it commits");
}
