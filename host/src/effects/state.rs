//! The state writes of one message: collected while it runs, checked again when they are written.
//!
//! A `put` after a `get` holds only while nobody else has changed the key. The version that was read
//! travels with the write; when it is not there any more at the flush, the batch runs again.

use std::collections::BTreeMap;

use crate::store::{ConsumerId, Expect, Session, StoreError};

use super::{Fault, Transaction};

/// One key's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    pub key: String,
    /// `None` removes the key.
    pub value: Option<Vec<u8>>,
    pub expect: Expect,
}

/// What a running message knows of its state keys.
#[derive(Default)]
pub struct StateView {
    /// The version that the database had when this message first asked. `None`: no row.
    read: BTreeMap<String, Option<u64>>,
    /// The last write of each key, in place of those before it.
    written: BTreeMap<String, Option<Vec<u8>>>,
}

impl StateView {
    /// The value as this message sees it, and its version.
    pub async fn get(
        &mut self,
        transaction: &mut Transaction,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, Fault> {
        let stored = match (self.written.get(key), self.read.get(key)) {
            (Some(own), Some(base)) => {
                return Ok(own.clone().map(|value| (value, base.unwrap_or(0) + 1)));
            }
            _ => transaction.state_get(key).await?,
        };
        let base = stored.as_ref().map(|(_, version)| *version);
        self.read.insert(key.to_owned(), base);
        Ok(match self.written.get(key) {
            Some(own) => own.clone().map(|value| (value, base.unwrap_or(0) + 1)),
            None => stored,
        })
    }

    /// Sets or removes a value.
    pub fn put(&mut self, key: &str, value: Option<Vec<u8>>) {
        self.written.insert(key.to_owned(), value);
    }

    /// Sets a value if the key has this version now; otherwise the version that it has.
    pub async fn put_if(
        &mut self,
        transaction: &mut Transaction,
        key: &str,
        value: Vec<u8>,
        version: Option<u64>,
    ) -> Result<Result<(), Option<u64>>, Fault> {
        let current = self
            .get(transaction, key)
            .await?
            .map(|(_, version)| version);
        if current != version {
            return Ok(Err(current));
        }
        self.put(key, Some(value));
        Ok(Ok(()))
    }

    /// The writes, each with what it expects to find.
    pub fn into_writes(self) -> Vec<StateWrite> {
        let Self { read, written } = self;
        written
            .into_iter()
            .map(|(key, value)| {
                let expect = match read.get(&key) {
                    None => Expect::Anything,
                    Some(None) => Expect::Absent,
                    Some(Some(version)) => Expect::Version(*version),
                };
                StateWrite { key, value, expect }
            })
            .collect()
    }
}

/// Writes the state of a batch in order.
pub async fn write(
    session: &mut dyn Session,
    consumer: ConsumerId,
    writes: &[StateWrite],
) -> Result<(), StoreError> {
    for write in writes {
        let written = session
            .state_write(consumer, &write.key, write.value.as_deref(), write.expect)
            .await
            .map_err(StoreError::ours)?;
        if !written {
            return Err(StoreError::Conflict(format!(
                "the state key {} has changed since it was read",
                write.key
            )));
        }
    }
    Ok(())
}
