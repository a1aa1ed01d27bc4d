//! Clocks that stand still at the attempt's start, so that every attempt of a message can be told from the
//! data alone. Sleeping is real: it is the wall-clock limit that ends it.

use std::time::Duration;

use tokio::time::Instant;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::super::guest::Guest;

impl wall_clock::Host for Guest {
    fn now(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        // WASI's wall clock does not know times before 1970.
        let micros = u64::try_from(self.attempt.now_micros).unwrap_or(0);
        Ok(wall_clock::Datetime {
            seconds: micros / 1_000_000,
            nanoseconds: u32::try_from(micros % 1_000_000 * 1_000).unwrap_or(0),
        })
    }

    fn resolution(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        Ok(wall_clock::Datetime {
            seconds: 0,
            nanoseconds: 1_000,
        })
    }
}

impl monotonic_clock::Host for Guest {
    fn now(&mut self) -> wasmtime::Result<monotonic_clock::Instant> {
        Ok(nanos(self))
    }

    fn resolution(&mut self) -> wasmtime::Result<monotonic_clock::Duration> {
        Ok(1_000)
    }

    fn subscribe_instant(
        &mut self,
        when: monotonic_clock::Instant,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        let duration = when.saturating_sub(nanos(self));
        self.subscribe_duration(duration)
    }

    fn subscribe_duration(
        &mut self,
        when: monotonic_clock::Duration,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        let alarm = Alarm {
            at: Instant::now().checked_add(Duration::from_nanos(when)),
        };
        let alarm = self.wasi.table.push(alarm)?;
        subscribe(&mut self.wasi.table, alarm)
    }
}

fn nanos(guest: &Guest) -> u64 {
    u64::try_from(guest.attempt.now_micros)
        .unwrap_or(0)
        .saturating_mul(1_000)
}

/// Rings at a time; `None` is later than any time there is.
struct Alarm {
    at: Option<Instant>,
}

#[async_trait::async_trait]
impl Pollable for Alarm {
    async fn ready(&mut self) {
        match self.at {
            // Something that is due lets others run first: a guest may ask for it in a loop.
            Some(at) if at <= Instant::now() => tokio::task::yield_now().await,
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}
