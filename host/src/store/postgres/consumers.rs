//! The rows of `hapax_consumer`, and the secret of the store.

use chrono::{DateTime, Utc};

use super::session::{PostgresSession, column};
use crate::store::{ConsumerId, ConsumerRow, StoreError};

impl PostgresSession {
    pub(super) async fn get_consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        // Read first: the row is almost always there, and an INSERT that finds it takes a number of the
        // identity for nothing.
        if let Some(consumer) = self.read_consumer(name).await? {
            return Ok(consumer);
        }
        let insert = self
            .statement(
                "INSERT INTO @hapax_consumer (name, key_rule, fingerprint_rule) VALUES ($1, $2, $3) \
                 ON CONFLICT (name) DO NOTHING",
            )
            .bind(name)
            .bind(key_rule)
            .bind(fingerprint_rule);
        self.touch(insert).await?;
        self.read_consumer(name)
            .await?
            .ok_or_else(|| StoreError::Broken(format!("the row of the consumer {name} is gone")))
    }

    async fn read_consumer(&mut self, name: &str) -> Result<Option<ConsumerRow>, StoreError> {
        let select = self
            .statement(
                "SELECT id, key_rule, fingerprint_rule, generation, horizon FROM @hapax_consumer WHERE name = $1",
            )
            .bind(name);
        let Some(row) = self.row(select).await? else {
            return Ok(None);
        };
        let horizon: Option<DateTime<Utc>> = column(&row, 4)?;
        Ok(Some(ConsumerRow {
            id: ConsumerId(column(&row, 0)?),
            key_rule: column(&row, 1)?,
            fingerprint_rule: column(&row, 2)?,
            generation: column(&row, 3)?,
            horizon: horizon.map(|time| time.timestamp_micros()),
        }))
    }

    pub(super) async fn get_secret(&mut self) -> Result<Vec<u8>, StoreError> {
        // Three random UUIDs hold 366 bits of the server's strong randomness; the hash makes 256 of them.
        let insert = self.statement(
            "INSERT INTO @hapax_meta (name, value) SELECT 'secret', encode(sha256(convert_to( \
             gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')), 'hex') \
             WHERE NOT EXISTS (SELECT FROM @hapax_meta WHERE name = 'secret') \
             ON CONFLICT (name) DO NOTHING",
        );
        self.touch(insert).await?;
        let select = self.statement("SELECT value FROM @hapax_meta WHERE name = 'secret'");
        let row = self.row(select).await?;
        let row =
            row.ok_or_else(|| StoreError::Broken("the secret of the store is gone".to_owned()))?;
        let text: String = column(&row, 0)?;
        hex::decode(text)
            .map_err(|error| StoreError::Broken(format!("the secret of the store: {error}")))
    }
}
