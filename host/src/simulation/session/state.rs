//! The values that handlers keep.

use crate::store::{ConsumerId, Expect, StoreError};

use super::super::database::{Place, Row, place, seen};
use super::{ModelSession, over};

impl ModelSession {
    pub(super) async fn get_state(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let own = self.statement().await?;
        let found = self
            .locked_state(&place(consumer, key.as_bytes()), own)
            .await?;
        self.end(own);
        Ok(found)
    }

    pub(super) async fn write_state(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        let own = self.statement().await?;
        let row = place(consumer, key.as_bytes());
        let found = self.locked_state(&row, own).await?;
        let version = found.map(|(_, version)| version);
        let expected = match expect {
            Expect::Anything => true,
            Expect::Absent => version.is_none(),
            Expect::Version(wanted) => version == Some(wanted),
        };
        if expected {
            let next = version.map_or(1, |version| version + 1);
            let change = value.map(|value| (value.to_vec(), next));
            self.open().changes.state.insert(row, change);
        }
        self.end(own);
        Ok(expected)
    }

    /// The value of a row, which nobody else changes from now on.
    async fn locked_state(
        &mut self,
        row: &Place,
        own: bool,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        self.lock(&Row::State(row.clone()), own).await?;
        let state = self.database.state();
        let changes = &self.transaction.as_ref().ok_or_else(over)?.changes.state;
        Ok(seen(changes, &state.committed.state, row).cloned())
    }
}
