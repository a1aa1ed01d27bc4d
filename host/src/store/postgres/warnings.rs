//! What the server warns of while a statement runs.
//!
//! A warning is no error to sqlx, which hands it to the log and to nobody else. After COMMIT it can mean that no
//! standby has what was committed: somebody has cancelled the wait for one. So the log is listened to, by the
//! one task and for the one statement. What else the driver would log meanwhile is not.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::LazyLock;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, dispatcher};

/// Where sqlx logs what the server says beside its answers.
const NOTICES: &str = "sqlx::postgres::notice";

/// Made once: each new one has every place that logs asked anew.
static LISTENER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Listener));

thread_local! {
    /// The first warning since the future that is being polled here was polled.
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a statement. The first warning of the server comes with its outcome.
pub(super) async fn listening<F: Future>(statement: F) -> (F::Output, Option<String>) {
    let mut statement = pin!(statement);
    let mut warning = None;
    let outcome = poll_fn(|context| {
        HEARD.take();
        let poll = dispatcher::with_default(&LISTENER, || statement.as_mut().poll(context));
        let heard = HEARD.take();
        if warning.is_none() {
            warning = heard;
        }
        poll
    })
    .await;
    (outcome, warning)
}

struct Listener;

fn is_warning(metadata: &Metadata<'_>) -> bool {
    metadata.target() == NOTICES && *metadata.level() == Level::WARN
}

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_warning(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_warning(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        if is_warning(event.metadata()) {
            let mut message = Message(String::new());
            event.record(&mut message);
            HEARD.with_borrow_mut(|heard| {
                heard.get_or_insert(message.0);
            });
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }
}
