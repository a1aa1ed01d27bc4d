//! Counts what a consumer did, from what it left behind: rows in the business table and messages in
//! the output queue. What the consumer says about itself is not asked.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// An event as it was found in the output queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub message_id: String,
    pub order_id: String,
}

/// One consumer's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Messages that were published to its queue.
    pub deliveries: u64,
    /// Distinct orders among them.
    pub unique: u64,
    /// Rows in the business table.
    pub effects: u64,
    /// Distinct message ids in the output queue. An event that reached the broker twice with one id is
    /// one event: its receiver can tell.
    pub events: u64,
    /// Effects or events beyond one per order, whichever are more.
    pub doubled: u64,
    /// Orders without an effect or without an event.
    pub lost: u64,
}

#[derive(Default)]
struct Found {
    effects: u64,
    events: u64,
}

impl Tally {
    /// `orders` are the distinct ids that were published. Effects and events of an order that nobody
    /// published are surplus too.
    pub fn count(
        deliveries: usize,
        orders: &HashSet<&str>,
        effects: &[String],
        events: &[Event],
    ) -> Self {
        let mut found: HashMap<&str, Found> = orders
            .iter()
            .map(|order| (*order, Found::default()))
            .collect();
        for order in effects {
            found.entry(order).or_default().effects += 1;
        }
        let mut ids = HashSet::new();
        for event in events.iter().filter(|event| ids.insert(&event.message_id)) {
            found.entry(&event.order_id).or_default().events += 1;
        }
        let mut tally = Self {
            deliveries: deliveries as u64,
            unique: orders.len() as u64,
            effects: effects.len() as u64,
            events: ids.len() as u64,
            ..Self::default()
        };
        for (order, found) in &found {
            let wanted = u64::from(orders.contains(order));
            tally.doubled += found.effects.max(found.events).saturating_sub(wanted);
            tally.lost += u64::from(found.effects.min(found.events) < wanted);
        }
        tally
    }

    /// Every order took effect once and was told once.
    pub fn is_exact(&self) -> bool {
        let figures = [self.effects, self.events];
        self.doubled == 0 && self.lost == 0 && figures.iter().all(|count| *count == self.unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orders `a`, `b` and `c` were published, five messages in all. Events are `id:order`.
    fn count(effects: &str, events: &str) -> Tally {
        let orders = HashSet::from(["a", "b", "c"]);
        let effects = effects
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let events = events
            .split_whitespace()
            .filter_map(|event| event.split_once(':'))
            .map(|(id, order)| Event {
                message_id: id.to_owned(),
                order_id: order.to_owned(),
            })
            .collect::<Vec<_>>();
        Tally::count(5, &orders, &effects, &events)
    }

    fn doubled_and_lost(effects: &str, events: &str) -> (u64, u64) {
        let tally = count(effects, events);
        assert_eq!(tally.is_exact(), tally.doubled == 0 && tally.lost == 0);
        (tally.doubled, tally.lost)
    }

    #[test]
    fn one_effect_and_one_event_for_every_order_is_exact() {
        let tally = count("a b c", "1:a 2:b 3:c");
        assert!(tally.is_exact());
        let figures = (tally.deliveries, tally.unique, tally.effects, tally.events);
        assert_eq!(figures, (5, 3, 3, 3));
    }

    #[test]
    fn a_second_effect_is_doubled_even_when_the_event_is_not() {
        assert_eq!(doubled_and_lost("a a b c", "1:a 2:b 3:c"), (1, 0));
    }

    #[test]
    fn a_second_event_is_doubled_even_when_the_effect_is_not() {
        assert_eq!(doubled_and_lost("a b c", "1:a 2:b 3:c 4:c"), (1, 0));
    }

    #[test]
    fn an_execution_too_many_counts_once_although_it_leaves_an_effect_and_an_event() {
        assert_eq!(doubled_and_lost("a a a b c", "1:a 2:b 3:c 4:a 5:a"), (2, 0));
    }

    #[test]
    fn an_order_without_effect_or_without_event_is_lost_once() {
        assert_eq!(doubled_and_lost("a c", "1:a 2:c"), (0, 1));
        assert_eq!(doubled_and_lost("a b c", "1:a 2:c"), (0, 1));
        assert_eq!(doubled_and_lost("a c", "1:a 2:b 3:c"), (0, 1));
    }

    #[test]
    fn a_doubled_order_does_not_make_up_for_a_lost_one() {
        assert_eq!(doubled_and_lost("a a c", "1:a 2:a 3:c"), (1, 1));
    }

    #[test]
    fn an_event_that_was_sent_twice_with_one_id_is_one_event() {
        let tally = count("a b c", "1:a 1:a 2:b 3:c");
        assert!(tally.is_exact());
        assert_eq!(tally.events, 3);
    }

    #[test]
    fn what_nobody_ordered_is_surplus() {
        assert_eq!(doubled_and_lost("a b c x", "1:a 2:b 3:c"), (1, 0));
    }

    #[test]
    fn nothing_done_is_everything_lost() {
        assert_eq!(doubled_and_lost("", ""), (0, 3));
    }
}
