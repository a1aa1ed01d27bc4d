//! What does the window of acknowledgements cost for each delivery, and how many frames does it send?
//!
//!     cargo bench --bench ack_window

#[path = "figures.rs"]
mod figures;

use std::time::Instant;

use figures::wanted;
use hapax::ack::Window;

const PREFETCH: u16 = 1_024;
const DELIVERIES: u64 = 2_000_000;

/// How the lanes settle what was delivered in the order of its tags.
const ORDERS: [(&str, u64, u64); 4] = [
    ("one lane, batches of 256", 1, 256),
    ("four lanes in turn, batches of 256", 4, 256),
    ("four lanes in turn, batches of 32", 4, 32),
    ("four lanes in turn, one by one", 4, 1),
];

fn main() {
    for (name, lanes, batch) in ORDERS {
        if wanted(name) {
            measure(name, lanes, batch);
        }
    }
}

/// Deliveries go to the lanes in turn, so a batch of one lane leaves holes that the others fill.
fn measure(name: &str, lanes: u64, batch: u64) {
    let mut window = Window::new(PREFETCH);
    let (mut frames, mut acked) = (0_u64, 0_u64);
    let started = Instant::now();
    let round = lanes * batch;
    for first in (1..=DELIVERIES - round).step_by(usize::try_from(round).expect("a small number")) {
        for lane in 0..lanes {
            for place in 0..batch {
                window.settle(first + place * lanes + lane);
            }
            for frame in window.frames(started) {
                frames += 1;
                acked = acked.max(frame.tag);
            }
        }
    }
    let elapsed = started.elapsed();
    assert!(acked > DELIVERIES - 2 * round, "nothing is left behind");
    println!(
        "{name:<44} {:>6.1} ns a delivery, {:>7.2} frames for 1,000",
        elapsed.as_nanos() as f64 / acked as f64,
        frames as f64 * 1_000.0 / acked as f64,
    );
}
