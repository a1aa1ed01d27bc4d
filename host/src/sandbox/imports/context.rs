//! What a handler may know about its own execution.

use uuid::Builder;

use crate::message::Message;
use crate::store::Dialect;

use super::super::bindings::hapax::plugin::context::{Host, SqlDialect, TraceContext};
use super::super::guest::Guest;

impl Host for Guest {
    fn consumer(&mut self) -> wasmtime::Result<String> {
        Ok(self.environment.consumer.clone())
    }

    fn key(&mut self) -> wasmtime::Result<Vec<u8>> {
        Ok(self.attempt.key.to_vec())
    }

    fn attempt(&mut self) -> wasmtime::Result<u32> {
        Ok(self.attempt.number)
    }

    fn redelivered(&mut self) -> wasmtime::Result<bool> {
        Ok(self.attempt.redelivered)
    }

    fn now(&mut self) -> wasmtime::Result<i64> {
        Ok(self.attempt.now_micros)
    }

    fn new_id(&mut self) -> wasmtime::Result<String> {
        if !self.environment.is_idempotent() {
            let bytes = self.fresh_bytes()?;
            return Ok(Builder::from_random_bytes(bytes).into_uuid().to_string());
        }
        let seed = self
            .environment
            .seeds
            .derive(&self.attempt.key, "new-id", self.new_ids);
        self.new_ids += 1;
        let bytes = seed[..16].try_into().expect("a seed has 32 bytes");
        Ok(Builder::from_custom_bytes(bytes).into_uuid().to_string())
    }

    fn config(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.environment.config.get(&name).cloned())
    }

    fn dialect(&mut self) -> wasmtime::Result<SqlDialect> {
        Ok(match self.environment.dialect {
            Dialect::Postgres => SqlDialect::Postgres,
            Dialect::Sqlite => SqlDialect::Sqlite,
            Dialect::Mysql => SqlDialect::Mysql,
        })
    }

    fn trace(&mut self) -> wasmtime::Result<Option<TraceContext>> {
        Ok(trace_of(&self.attempt.message))
    }
}

/// Reads `traceparent` (W3C Trace Context, section 3.2.2): `00-<trace>-<span>-<flags>`. A later version may
/// have more fields after these four; version 00 has exactly them.
fn trace_of(message: &Message) -> Option<TraceContext> {
    let header = message
        .headers()?
        .inner()
        .get("traceparent")?
        .as_long_string()?;
    let text = str::from_utf8(header.as_bytes()).ok()?;
    let mut fields = text.split('-');
    let version = hex_field(fields.next()?, 2)?;
    let trace_id = hex_field(fields.next()?, 32)?;
    let span_id = hex_field(fields.next()?, 16)?;
    let flags = hex_field(fields.next()?, 2)?;
    let well_formed = version != "ff" && (version != "00" || fields.next().is_none());
    let real = |id: &str| id.bytes().any(|digit| digit != b'0');
    (well_formed && real(trace_id) && real(span_id)).then(|| TraceContext {
        trace_id: trace_id.to_owned(),
        span_id: span_id.to_owned(),
        sampled: u8::from_str_radix(flags, 16).is_ok_and(|bits| bits & 1 == 1),
    })
}

fn hex_field(text: &str, length: usize) -> Option<&str> {
    let valid = text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    valid.then_some(text)
}
