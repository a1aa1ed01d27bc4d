//! Identifiers and randomness that are equal in every attempt of a message, and that nobody outside the
//! store can guess: HMAC-SHA256 under the store's secret (RFC 2104).
//!
//! Every input is prefixed with its length, so that no two of them run together.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What all messages of a consumer derive from.
#[derive(Clone)]
pub struct Seeds {
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for Seeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seeds")
    }
}

impl Seeds {
    pub fn new(secret: &[u8], consumer: &str) -> Self {
        let mut keyed = Hmac::new_from_slice(secret).expect("HMAC takes keys of any length");
        absorb(&mut keyed, consumer.as_bytes());
        Self { keyed }
    }

    /// 32 bytes for the `index`-th use of one purpose by one message.
    pub fn derive(&self, key: &[u8], purpose: &str, index: u64) -> [u8; 32] {
        let mut mac = self.keyed.clone();
        absorb(&mut mac, key);
        absorb(&mut mac, purpose.as_bytes());
        mac.update(&index.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

fn absorb(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_be_bytes());
    mac.update(part);
}

/// An endless stream of bytes from one seed: HMAC of a counter.
pub(super) struct Stream {
    keyed: Hmac<Sha256>,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Stream {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let keyed = Hmac::new_from_slice(seed).expect("HMAC takes keys of any length");
        Self {
            keyed,
            counter: 0,
            block: [0; 32],
            used: 32,
        }
    }

    pub(super) fn fill(&mut self, mut target: &mut [u8]) {
        while !target.is_empty() {
            if self.used == self.block.len() {
                let mut mac = self.keyed.clone();
                mac.update(&self.counter.to_be_bytes());
                self.block = mac.finalize().into_bytes().into();
                self.counter += 1;
                self.used = 0;
            }
            let count = target.len().min(self.block.len() - self.used);
            let (now, later) = target.split_at_mut(count);
            now.copy_from_slice(&self.block[self.used..self.used + count]);
            self.used += count;
            target = later;
        }
    }
}
