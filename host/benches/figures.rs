//! What the benches share: how a figure is taken, and how it is shown.

#![allow(
    dead_code,
    reason = "each bench is a program of its own and uses a part of this"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Durations of one kind of work.
pub struct Figures {
    name: String,
    taken: Vec<Duration>,
}

impl Figures {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            taken: Vec::new(),
        }
    }

    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    pub fn add(&mut self, duration: Duration) {
        self.taken.push(duration);
    }

    /// Times `work` so often.
    pub fn of<T>(name: &str, times: usize, mut work: impl FnMut() -> T) -> Self {
        let mut figures = Self::new(name);
        for _ in 0..times {
            let started = Instant::now();
            std::hint::black_box(work());
            figures.add(started.elapsed());
        }
        figures
    }

    /// One line: the median, the 99th percentile and the longest.
    pub fn show(mut self) {
        self.taken.sort_unstable();
        let at = |part: f64| match self.taken.len() {
            0 => Duration::ZERO,
            count => self.taken[((count - 1) as f64 * part) as usize],
        };
        println!(
            "{:<58} p50 {:>10.2?}  p99 {:>10.2?}  max {:>10.2?}  n {}",
            self.name,
            at(0.5),
            at(0.99),
            at(1.0),
            self.taken.len()
        );
    }
}

/// What `cargo bench` was asked for: the parts whose names contain it, or all.
pub fn wanted(part: &str) -> bool {
    let mut filters = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .peekable();
    filters.peek().is_none() || filters.any(|filter| part.contains(&filter))
}

pub fn has_flag(flag: &str) -> bool {
    std::env::args().any(|argument| argument == flag)
}

/// A component that `cargo build --profile plugin --target wasm32-wasip2` has made.
pub fn component(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("a program knows where it is");
    // target/release/deps/PROGRAM
    let target = program
        .ancestors()
        .nth(3)
        .expect("it lies in a target directory");
    let component = target.join(format!("wasm32-wasip2/plugin/{name}.wasm"));
    assert!(
        component.exists(),
        "{} is missing: cargo build --profile plugin --target wasm32-wasip2 -p points -p 'guest-*'",
        component.display()
    );
    component
}

/// Memory of this process now, in KiB (Linux).
pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0)
}
