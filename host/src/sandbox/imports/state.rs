//! The consumer's key-value table: read in the transaction, written with the message's other effects.

use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};

use super::super::bindings::hapax::plugin::state::{Entry, Host, Mismatch};
use super::super::guest::{Guest, Stop};

/// The width of the key's column.
const MAX_KEY_BYTES: usize = 255;

impl Host for Guest {
    async fn get(&mut self, key: String) -> wasmtime::Result<Option<Entry>> {
        self.admit_key(&key, 0)?;
        let entry = self
            .in_transaction(async |transaction, state| state.get(transaction, &key).await)
            .await?;
        let Some((value, version)) = entry else {
            return Ok(None);
        };
        self.quota
            .sql_bytes(&self.environment.limits, value.len())?;
        Ok(Some(Entry { value, version }))
    }

    fn put(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<()> {
        self.admit_key(&key, value.len())?;
        self.state.put(&key, Some(value));
        Ok(())
    }

    async fn put_if(
        &mut self,
        key: String,
        value: Vec<u8>,
        version: Option<u64>,
    ) -> wasmtime::Result<Result<(), Mismatch>> {
        self.admit_key(&key, value.len())?;
        let answer = self
            .in_transaction(async |transaction, state| {
                state.put_if(transaction, &key, value, version).await
            })
            .await?;
        Ok(answer.map_err(|current| Mismatch { current }))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<()> {
        self.admit_key(&key, 0)?;
        self.state.put(&key, None);
        Ok(())
    }
}

impl Guest {
    /// Counts an access, and refuses a key that the table could not hold: found at the commit, it would
    /// take the message's neighbours with it.
    fn admit_key(&mut self, key: &str, value_bytes: usize) -> Result<(), Stop> {
        failpoint::pass_with(Point::MidHandler, &self.attempt.key);
        let problem = if key.len() > MAX_KEY_BYTES {
            format!(
                "has {} bytes; at most {MAX_KEY_BYTES} are possible",
                key.len()
            )
        } else if key.contains('\0') {
            "contains a NUL character".to_owned()
        } else {
            return self
                .quota
                .statement(&self.environment.limits, key.len() + value_bytes);
        };
        Err(Stop::Failed(Failure::never(
            code::SQL_REFUSED,
            format!("a state key {problem}"),
        )))
    }
}
