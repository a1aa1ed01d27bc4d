//! Randomness for a guest: by default derived from the message, so that what a handler makes up is equal in
//! every attempt and not guessable; with `random = "secure"`, or without idempotency, the system's own.

use wasmtime_wasi::p2::bindings::random::{insecure, insecure_seed, random};
use wasmtime_wasi::random::WasiRandomCtx;

use super::super::guest::Guest;
use super::super::seeds::Stream;

/// Bytes that one call returns at most: making them must not hold up the other guests of the thread.
const MAX_BYTES: u64 = 64 * 1024;

/// Where one instance's random bytes come from.
pub(super) enum Randomness {
    Seeded(Stream),
    System(Box<WasiRandomCtx>),
}

impl Guest {
    fn random_bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
        if count > MAX_BYTES {
            wasmtime::bail!(
                "asked for {count} random bytes at once; at most {MAX_BYTES} are given"
            );
        }
        let mut bytes = vec![0; usize::try_from(count)?];
        let source = self.wasi.random.get_or_insert_with(|| {
            if self.environment.repeats() {
                let seed = self
                    .environment
                    .seeds
                    .derive(&self.attempt.key, "random", 0);
                Randomness::Seeded(Stream::new(&seed))
            } else {
                Randomness::System(Box::default())
            }
        });
        match source {
            Randomness::Seeded(stream) => stream.fill(&mut bytes),
            Randomness::System(system) => {
                bytes = random::Host::get_random_bytes(&mut **system, count)?
            }
        }
        Ok(bytes)
    }

    fn random_u64(&mut self) -> wasmtime::Result<u64> {
        let bytes = self.random_bytes(8)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// 16 random bytes that differ each time, whatever the configuration says.
    pub(in crate::sandbox) fn fresh_bytes(&mut self) -> wasmtime::Result<[u8; 16]> {
        let bytes = random::Host::get_random_bytes(&mut WasiRandomCtx::default(), 16)?;
        Ok(bytes.try_into().expect("16 bytes were asked for"))
    }
}

impl random::Host for Guest {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(len)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.random_u64()
    }
}

impl insecure::Host for Guest {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(len)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.random_u64()
    }
}

impl insecure_seed::Host for Guest {
    /// Asked for once by most languages, to seed their hash maps. Not from the stream: whether a language
    /// asks for it must not move what the handler draws.
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        let seed = if self.environment.repeats() {
            let seed = self
                .environment
                .seeds
                .derive(&self.attempt.key, "insecure-seed", 0);
            u128::from_be_bytes(seed[..16].try_into().expect("a seed has 32 bytes"))
        } else {
            u128::from_be_bytes(self.fresh_bytes()?)
        };
        Ok((seed as u64, (seed >> 64) as u64))
    }
}
