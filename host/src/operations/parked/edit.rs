//! A parked message with another body: the operator's correction of it.
//!
//! The row keeps its id, its key and its fingerprint. The key, since a correction of a message is that
//! message; the fingerprint, so that the broker's redelivery of the original, and a producer who sends it
//! once more, are recognised as what was corrected. A body that would give the row another key is refused:
//! that is another message, and belongs into the queue.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::message::Message;
use crate::store::{JournalEntry, Session, Status};

use super::super::{OperationError, Operations};
use super::{Changed, ids};

/// An edited body, and the one that the editor was opened with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub id: String,
    /// Base64.
    pub old_body: String,
    pub new_body: String,
    pub who: String,
    /// Find out whether it could be done, and do nothing.
    pub dry_run: bool,
}

impl Operations {
    /// Replaces the body and makes the row due.
    pub(in super::super) async fn edit(
        &self,
        session: &mut dyn Session,
        edit: &Edit,
    ) -> Result<Changed, OperationError> {
        let refused = |text: String| OperationError::Refused(text);
        let decode = |text: &str| {
            STANDARD
                .decode(text)
                .map_err(|_| refused("a body cannot be read".to_owned()))
        };
        let (old, new) = (decode(&edit.old_body)?, decode(&edit.new_body)?);
        let record = ids::find(session, &edit.id, true).await?;
        if record.row.status != Status::Parked {
            return Err(refused(ids::not_parked(&edit.id, &record)));
        }
        if let Some(withheld) = &record.row.withheld {
            let original = withheld.original().ok_or_else(|| {
                refused(format!(
                    "{} was stored as {} by another version of hapax, and this one cannot make a message of it: \
                     discard it, or use that version",
                    edit.id, withheld.encoding
                ))
            })?;
            if original.cut.is_some() && old == new {
                return Err(refused(
                    "only the beginning of the body is stored, and it would run as it is: write the whole body"
                        .to_owned(),
                ));
            }
        }
        let name = &record.consumer;
        self.known_consumer(Some(name))?;
        let consumer = self
            .config
            .consumers
            .iter()
            .find(|consumer| consumer.name == *name)
            .expect("a known consumer is among the configuration's");
        let edited = Message {
            body: Bytes::from(new.clone()),
            ..record.row.message.clone()
        };
        let rules = crate::consumer::key_rules(consumer);
        let identity = rules.identify(&edited).map_err(|failure| {
            refused(format!(
                "the edited message would be parked again as {}: {}",
                failure.code, failure.message
            ))
        })?;
        if let Some(key) = &record.row.key {
            // By the rules that hold now; the row may have its key from earlier ones.
            let before = rules.identify(&record.row.message);
            let before = before.map_or_else(|_| key.clone(), |identity| identity.key);
            if before != identity.key {
                let show = crate::key::show;
                return Err(refused(format!(
                    "the edit would change the key from {} to {}, which makes it another message: publish \
                     that one with `hapax publish`, and discard this one",
                    show(&before),
                    show(&identity.key)
                )));
            }
        }
        if edit.dry_run {
            return Ok(Changed {
                changed: 1,
                ..Changed::default()
            });
        }
        let id = self.consumer_id(session, consumer).await?;
        if !session
            .upkeep()
            .waiting_edit(&record.row.id, &old, &new)
            .await?
        {
            return Err(refused(format!(
                "{} has changed while it was edited; nothing was done",
                edit.id
            )));
        }
        failpoint::pass(Point::AfterEdit);
        self.note(
            session,
            JournalEntry {
                at: 0,
                actor: edit.who.clone(),
                action: "edit".to_owned(),
                consumer: Some(id),
                key: record.row.key.clone(),
                why: format!(
                    "body of {} edited and replayed",
                    hex::encode(&record.row.id)
                ),
            },
        )
        .await?;
        let chosen = [hex::encode(&record.row.id)];
        self.change(session, &chosen, super::Change::Replay).await
    }
}
