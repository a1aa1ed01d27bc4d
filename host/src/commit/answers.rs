//! `on-duplicate = "reply"`: whoever asks again gets the answer that the message gave.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::OnDuplicate;
use crate::effects::outbox::{IdSeed, Origin, StoredReply};
use crate::store::{Fate, OutboxRow, Session};

use super::setback::host_error;
use super::{Hold, Item, Pass, Plan, Setback};

impl Pass<'_> {
    /// The answers to this batch's duplicates of committed messages.
    pub(super) async fn answers(
        &self,
        session: &mut dyn Session,
        items: &[Item],
        results: &[Plan],
    ) -> Result<Vec<Arc<OutboxRow>>, Setback> {
        if self.consumer.on_duplicate != OnDuplicate::Reply {
            return Ok(Vec::new());
        }
        let mut answers = Vec::new();
        let mut asked = Vec::new();
        for (item, result) in items.iter().zip(results).filter(|(item, _)| asks(item)) {
            let judged = match result {
                Plan::Follow(first) if same_payload(item, &items[*first]) => &results[*first],
                result @ Plan::Duplicate(_) => result,
                _ => continue,
            };
            match judged {
                Plan::Ran { reply: Some(reply) } => answers.extend(self.answer(item, reply)),
                Plan::Duplicate(Fate::Committed) => asked.push(item),
                _ => {}
            }
        }
        if asked.is_empty() {
            return Ok(answers);
        }
        let keys = asked.iter().map(|item| key(item)).collect::<Vec<_>>();
        let stored = session
            .replies(self.consumer.id, &keys)
            .await
            .map_err(host_error)?;
        for (item, stored) in asked.into_iter().zip(stored) {
            let reply = stored.and_then(StoredReply::decode);
            answers.extend(reply.and_then(|reply| self.answer(item, &reply)));
        }
        Ok(answers)
    }

    /// The answer in the outbox. What cannot be sent to this asker is not sent: his message stays a duplicate.
    fn answer(&self, item: &Item, reply: &StoredReply) -> Option<Arc<OutboxRow>> {
        let environment = &self.consumer.environment;
        let seed = IdSeed::Stable {
            consumer: environment.consumer.clone(),
            key: key(item).to_vec(),
            generation: environment.generation.load(Ordering::Acquire),
        };
        let origin = Origin {
            message: &item.message,
            seed: &seed,
            lane: self.lane,
            now_seconds: u64::try_from(self.consumer.now_micros() / 1_000_000).unwrap_or(0),
        };
        let (body, kind) = (reply.body.to_vec(), reply.content_type.clone());
        match environment.composer.reply(origin, body, kind) {
            Ok(row) => Some(Arc::new(row)),
            Err(error) => {
                tracing::debug!(consumer = %self.consumer.name, %error, "Stored answer not sent");
                None
            }
        }
    }
}

/// Whether a delivery waits for an answer.
fn asks(item: &Item) -> bool {
    let reply_to = item.message.properties.reply_to().as_ref();
    !matches!(item.hold, Hold::Row(_)) && reply_to.is_some_and(|name| !name.as_str().is_empty())
}

fn same_payload(item: &Item, first: &Item) -> bool {
    matches!((&item.identity, &first.identity), (Ok(own), Ok(other)) if own.fingerprint == other.fingerprint)
}

fn key(item: &Item) -> &[u8] {
    item.identity
        .as_ref()
        .map_or(&[], |identity| identity.key.as_slice())
}
