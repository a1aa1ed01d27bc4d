//! The statements of `hapax_state` and `hapax_consumer`, and the secret of the store.

use super::connection::{Slot, column};
use crate::store::{ConsumerId, ConsumerRow, Expect, StoreError};

impl Slot {
    pub async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        let insert = sqlx::query(
            "INSERT INTO hapax_consumer (name, key_rule, fingerprint_rule) VALUES (?, ?, ?) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(key_rule)
        .bind(fingerprint_rule);
        self.touch(insert).await?;
        let select = sqlx::query(
            "SELECT id, key_rule, fingerprint_rule, generation, horizon FROM hapax_consumer WHERE name = ?",
        )
        .bind(name);
        let row = self.row(select).await?;
        let row = row
            .ok_or_else(|| StoreError::Broken(format!("the row of the consumer {name} is gone")))?;
        Ok(ConsumerRow {
            id: ConsumerId(column(&row, 0)?),
            key_rule: column(&row, 1)?,
            fingerprint_rule: column(&row, 2)?,
            generation: column(&row, 3)?,
            horizon: column(&row, 4)?,
        })
    }

    pub async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        // randomblob is seeded by the operating system.
        let insert = sqlx::query(
            "INSERT INTO hapax_meta (name, value) VALUES ('secret', lower(hex(randomblob(32)))) \
             ON CONFLICT (name) DO NOTHING",
        );
        self.touch(insert).await?;
        let row = self
            .row(sqlx::query(
                "SELECT value FROM hapax_meta WHERE name = 'secret'",
            ))
            .await?;
        let row =
            row.ok_or_else(|| StoreError::Broken("the secret of the store is gone".to_owned()))?;
        let text: String = column(&row, 0)?;
        hex::decode(text)
            .map_err(|error| StoreError::Broken(format!("the secret of the store: {error}")))
    }

    pub async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let select =
            sqlx::query("SELECT value, version FROM hapax_state WHERE consumer = ? AND key = ?")
                .bind(consumer.0)
                .bind(key.as_bytes());
        let Some(row) = self.row(select).await? else {
            return Ok(None);
        };
        Ok(Some((
            column(&row, 0)?,
            column::<i64>(&row, 1)?.unsigned_abs(),
        )))
    }

    pub async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        let text = match (value.is_some(), expect) {
            (true, Expect::Anything) => {
                "INSERT INTO hapax_state (consumer, key, value, version) VALUES (?1, ?2, ?3, 1) \
                 ON CONFLICT (consumer, key) DO UPDATE SET value = excluded.value, version = version + 1"
            }
            (true, Expect::Absent) => {
                "INSERT INTO hapax_state (consumer, key, value, version) VALUES (?1, ?2, ?3, 1) \
                 ON CONFLICT (consumer, key) DO NOTHING"
            }
            (true, Expect::Version(_)) => {
                "UPDATE hapax_state SET value = ?3, version = version + 1 \
                 WHERE consumer = ?1 AND key = ?2 AND version = ?4"
            }
            (false, Expect::Anything) => "DELETE FROM hapax_state WHERE consumer = ?1 AND key = ?2",
            (false, Expect::Absent) => return Ok(self.state_get(consumer, key).await?.is_none()),
            (false, Expect::Version(_)) => {
                "DELETE FROM hapax_state WHERE consumer = ?1 AND key = ?2 AND version = ?3"
            }
        };
        let mut query = sqlx::query(text).bind(consumer.0).bind(key.as_bytes());
        if let Some(value) = value {
            query = query.bind(value);
        }
        if let Expect::Version(version) = expect {
            // No row has a version that does not fit.
            let Ok(version) = i64::try_from(version) else {
                return Ok(false);
            };
            query = query.bind(version);
        }
        let touched = self.touch(query).await?;
        Ok(touched == 1 || (value.is_none() && expect == Expect::Anything))
    }
}
