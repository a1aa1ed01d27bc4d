use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn settle(window: &mut Window, tags: &[u64]) {
    for tag in tags {
        window.settle(*tag);
    }
}

#[test]
fn a_contiguous_prefix_is_one_multiple_frame() {
    let mut window = Window::new(100);
    settle(&mut window, &[2, 1, 3]);
    assert_eq!(
        window.frames(Instant::now()),
        [Frame {
            tag: 3,
            multiple: true
        }]
    );
    assert!(!window.is_waiting());
}

#[test]
fn what_lies_behind_a_young_hole_waits() {
    let mut window = Window::new(100);
    settle(&mut window, &[1, 3, 4]);
    let now = Instant::now();
    assert_eq!(
        window.frames(now),
        [Frame {
            tag: 1,
            multiple: false
        }]
    );
    assert_eq!(window.frames(now), []);
    assert!(window.is_waiting());
}

#[test]
fn an_old_hole_is_stepped_over_with_single_acks() {
    let mut window = Window::new(100);
    settle(&mut window, &[2, 3]);
    let now = Instant::now();
    assert_eq!(window.frames(now), []);
    let later = now + HOLE_PATIENCE;
    let single = |tag| Frame {
        tag,
        multiple: false,
    };
    assert_eq!(window.frames(later), [single(2), single(3)]);
    // The hole closes: only what is new may be named.
    settle(&mut window, &[1]);
    assert_eq!(window.frames(later), [single(1)]);
    settle(&mut window, &[4, 5]);
    assert_eq!(
        window.frames(later),
        [Frame {
            tag: 5,
            multiple: true
        }]
    );
}

#[test]
fn a_hole_under_most_of_a_window_is_stepped_over_at_once() {
    let mut window = Window::new(16);
    let now = Instant::now();
    settle(&mut window, &Vec::from_iter(2..=14));
    assert_eq!(window.frames(now), []);
    settle(&mut window, &[15]);
    assert_eq!(window.frames(now).len(), 14);
}

/// What the broker still holds, as RabbitMQ keeps it: a frame must name a delivery that is outstanding.
struct Broker {
    outstanding: BTreeSet<u64>,
}

impl Broker {
    fn take(&mut self, frame: Frame) -> BTreeSet<u64> {
        assert!(
            self.outstanding.contains(&frame.tag),
            "PRECONDITION_FAILED: unknown tag {}",
            frame.tag
        );
        let acked = if frame.multiple {
            self.outstanding
                .iter()
                .copied()
                .take_while(|tag| *tag <= frame.tag)
                .collect()
        } else {
            BTreeSet::from([frame.tag])
        };
        self.outstanding.retain(|tag| !acked.contains(tag));
        acked
    }
}

proptest! {
    #[test]
    fn no_order_of_verdicts_acks_an_open_delivery_or_one_twice(
        order in (1_u64..60).prop_flat_map(|count| Just((1..=count).collect::<Vec<_>>()).prop_shuffle()),
        looks in prop::collection::vec((0_usize..5, 0_u64..1500), 60),
        prefetch in 1_u16..64,
    ) {
        let mut window = Window::new(prefetch);
        let mut broker = Broker { outstanding: order.iter().copied().collect() };
        let mut settled = BTreeSet::<u64>::new();
        let mut now = Instant::now();
        let mut rest = order.as_slice();
        for (take, millis) in looks {
            let (batch, later) = rest.split_at(take.min(rest.len()));
            rest = later;
            settled.extend(batch);
            settle(&mut window, batch);
            now += Duration::from_millis(millis);
            for frame in window.frames(now) {
                for tag in broker.take(frame) {
                    prop_assert!(settled.contains(&tag), "acked {} before its verdict", tag);
                }
            }
        }
        settled.extend(rest);
        settle(&mut window, rest);
        for frame in window.last_frames() {
            broker.take(frame);
        }
        prop_assert!(broker.outstanding.is_empty(), "never acked: {:?}", broker.outstanding);
    }
}

#[test]
fn the_oldest_delivery_is_the_oldest_that_is_not_acknowledged() {
    let mut window = Window::new(100);
    let start = Instant::now();
    let at = |number| start + HOLE_PATIENCE * number;
    assert_eq!(window.oldest(), None);
    for number in 1..=4 {
        window.delivered(at(number));
    }
    settle(&mut window, &[1, 3, 4]);
    window.frames(at(4));
    assert_eq!(window.oldest(), Some(at(2)), "others were dealt with since");
    window.delivered(at(5));
    window.last_frames();
    assert_eq!(window.oldest(), Some(at(2)));
    settle(&mut window, &[2]);
    window.frames(at(6));
    assert_eq!(window.oldest(), Some(at(5)));
    settle(&mut window, &[5]);
    window.frames(at(6));
    assert_eq!(window.oldest(), None);
}
