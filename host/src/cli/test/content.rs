//! What a store holds, as lines that can be compared.

use crate::consumer::Consumer;
use crate::message::Message;
use crate::store::{Session, StoreError, Value};

/// Rows of a table that are compared.
const MAX_ROWS: u64 = 1_000_000;

/// Every row of every table of a SQLite file.
pub async fn every_row(session: &mut dyn Session) -> Result<Vec<String>, StoreError> {
    session.begin().await?;
    let names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let names = session.query(names, &[], MAX_ROWS, u64::MAX).await?;
    let mut lines = Vec::new();
    for row in names.rows {
        let Some(Value::Text(name)) = row.first() else {
            continue;
        };
        let all = format!("SELECT * FROM \"{}\"", name.replace('"', "\"\""));
        let rows = session.query(&all, &[], MAX_ROWS, u64::MAX).await?;
        let mut table: Vec<_> = rows
            .rows
            .iter()
            .map(|row| format!("{name} {row:?}"))
            .collect();
        table.sort();
        lines.append(&mut table);
    }
    session.rollback().await?;
    Ok(lines)
}

/// What the host has written for this message.
pub async fn own_rows(
    session: &mut dyn Session,
    consumer: &Consumer,
    message: &Message,
) -> Result<Vec<String>, StoreError> {
    let mut lines = Vec::new();
    if let Ok(identity) = consumer.rules.identify(message) {
        let entries = session.entries(consumer.id, &[&identity.key]).await?;
        lines.extend(
            entries
                .into_iter()
                .flatten()
                .map(|entry| format!("{entry:?}")),
        );
    }
    let waiting = session.waiting_counts(consumer.id).await?;
    lines.extend(waiting.into_iter().map(|counts| format!("{counts:?}")));
    Ok(lines)
}
