//! What the fate of a key means for a message that carries it. Decisions only; the SQL is in `store`.
//!
//! A delivery whose key has a final or a waiting fate is a duplicate of that fate, whatever brought it
//! here; the same key with another payload is a producer's mistake and is never taken for a duplicate. A key
//! whose payload the ledger does not know (it was imported, or made by an earlier rule) is compared by itself.

use crate::store::{Entry, Fate};

/// What to do with a message whose key is in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The message of this key was dealt with, or waits in the table: acknowledge it.
    Duplicate(Fate),
    /// Another payload under the same key: park it, and leave the key alone.
    Reused(Fate),
    /// A start was recorded and nothing came of it: take the row over and run.
    TakeOver,
}

/// Judges a message against the ledger's entry for its key.
pub fn judge(entry: &Entry, fingerprint: &[u8]) -> Judgement {
    if !entry.fingerprint.is_empty() && entry.fingerprint != fingerprint {
        return Judgement::Reused(entry.fate);
    }
    match entry.fate {
        Fate::Started => Judgement::TakeOver,
        fate => Judgement::Duplicate(fate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fate: Fate, fingerprint: &[u8]) -> Entry {
        Entry {
            key: b"k".to_vec(),
            fate,
            fingerprint: fingerprint.to_vec(),
            attempts: 1,
        }
    }

    #[test]
    fn another_payload_is_no_duplicate_and_an_unknown_payload_is_any() {
        let committed = Fate::Committed;
        assert_eq!(
            judge(&entry(committed, b"a"), b"a"),
            Judgement::Duplicate(committed)
        );
        assert_eq!(
            judge(&entry(committed, b"a"), b"b"),
            Judgement::Reused(committed)
        );
        assert_eq!(
            judge(&entry(committed, b""), b"b"),
            Judgement::Duplicate(committed)
        );
        assert_eq!(judge(&entry(Fate::Started, b""), b"b"), Judgement::TakeOver);
    }
}
