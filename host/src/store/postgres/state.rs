//! The statements of `hapax_state`.

use super::session::{PostgresSession, column};
use crate::store::{ConsumerId, Expect, StoreError};

impl PostgresSession {
    pub(super) async fn get_state(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let select = self
            .statement("SELECT value, version FROM @hapax_state WHERE consumer = $1 AND key = $2 FOR UPDATE")
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

    pub(super) async fn write_state(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        let template = match (value.is_some(), expect) {
            (true, Expect::Anything) => {
                "INSERT INTO @hapax_state AS s (consumer, key, value, version) VALUES ($1, $2, $3, 1) \
                 ON CONFLICT (consumer, key) DO UPDATE SET value = excluded.value, version = s.version + 1"
            }
            (true, Expect::Absent) => {
                "INSERT INTO @hapax_state (consumer, key, value, version) VALUES ($1, $2, $3, 1) \
                 ON CONFLICT (consumer, key) DO NOTHING"
            }
            (true, Expect::Version(_)) => {
                "UPDATE @hapax_state SET value = $3, version = version + 1 \
                 WHERE consumer = $1 AND key = $2 AND version = $4"
            }
            (false, Expect::Anything) => {
                "DELETE FROM @hapax_state WHERE consumer = $1 AND key = $2"
            }
            (false, Expect::Absent) => return Ok(self.get_state(consumer, key).await?.is_none()),
            (false, Expect::Version(_)) => {
                "DELETE FROM @hapax_state WHERE consumer = $1 AND key = $2 AND version = $3"
            }
        };
        let mut query = self
            .statement(template)
            .bind(consumer.0)
            .bind(key.as_bytes());
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
