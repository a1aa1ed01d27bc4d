//! The paid orders that the demo publishes, and which of them are published twice.
//!
//! Everything random comes from the seed, so that a run can be repeated. Every duplicate is what a
//! producer's retry is: the same bytes with the same message id, somewhere else in the stream.

use serde::{Deserialize, Serialize};

/// The message of `plugins/points`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub order_id: String,
    pub user_id: String,
    pub amount_cents: i64,
}

/// What goes into every consumer's queue, in this order.
#[derive(Debug)]
pub struct Orders {
    pub deliveries: Vec<Order>,
    pub unique: usize,
    pub seed: u64,
}

const USERS: u32 = 1_000;

impl Orders {
    /// `unique` distinct orders, and `duplicates` more copies of some of them, all shuffled. An order
    /// may be drawn more than once.
    pub fn generate(unique: usize, duplicates: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut deliveries = Vec::with_capacity(unique + duplicates);
        deliveries.extend((1..=unique).map(|number| Order {
            order_id: format!("o-{number}"),
            user_id: format!("u-{}", random.u32(1..=USERS)),
            amount_cents: random.i64(100..50_000),
        }));
        let drawn = (0..duplicates)
            .map(|_| random.usize(..unique))
            .collect::<Vec<_>>();
        deliveries.extend(
            drawn
                .into_iter()
                .map(|index| deliveries[index].clone())
                .collect::<Vec<_>>(),
        );
        random.shuffle(&mut deliveries);
        Self {
            deliveries,
            unique,
            seed,
        }
    }

    /// The ids of all orders, each once.
    pub fn ids(&self) -> std::collections::HashSet<&str> {
        self.deliveries
            .iter()
            .map(|order| order.order_id.as_str())
            .collect()
    }
}

impl Order {
    /// A point for every 100 cents, as the handler of `plugins/points` computes it.
    pub fn points(&self) -> i64 {
        self.amount_cents / 100
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and numbers are always JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_there_and_the_rest_are_exact_copies() {
        let orders = Orders::generate(1_000, 300, 7);
        assert_eq!(orders.deliveries.len(), 1_300);
        assert_eq!(orders.ids().len(), 1_000);
        let mut by_id = std::collections::HashMap::new();
        for order in &orders.deliveries {
            let first = by_id.entry(&order.order_id).or_insert(order);
            assert_eq!(*first, order);
        }
    }

    #[test]
    fn the_seed_repeats_the_stream_and_another_seed_does_not() {
        let generate = |seed| Orders::generate(200, 60, seed).deliveries;
        assert_eq!(generate(1), generate(1));
        assert_ne!(generate(1), generate(2));
    }

    #[test]
    fn duplicates_stand_in_random_places() {
        let orders = Orders::generate(2_000, 600, 3);
        let mut seen = std::collections::HashSet::new();
        let repeats = orders
            .deliveries
            .iter()
            .enumerate()
            .filter(|(_, order)| !seen.insert(&order.order_id))
            .map(|(place, _)| place)
            .collect::<Vec<_>>();
        assert_eq!(repeats.len(), 600);
        // In a shuffled stream, repeats begin early and never bunch up at the end.
        assert!(repeats[0] < 650, "{}", repeats[0]);
        let late = repeats.iter().filter(|place| **place >= 2_000).count();
        assert!(
            late < 400,
            "{late} of 600 duplicates are in the last quarter"
        );
    }
}
