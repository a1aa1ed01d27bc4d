//! The source of a simulated host: consumes, and acknowledges what is settled, on one channel after the other.
//!
//! It subscribes and gives messages back when the real ones do.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ack::{AckQueue, Frame, Settled, Window};
use crate::consumer::Consumer;
use crate::lane::{Delivery, Lanes, Origin, Work};
use crate::source::{LEAVE_PATIENCE, WINDOW_TICK};

use super::faults::Sabotage;
use super::world::World;

const PREFETCH: u16 = 12;

pub async fn run(
    world: Arc<World>,
    consumer: Arc<Consumer>,
    lanes: Lanes,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = consumer.gate.may_subscribe() => {}
        }
        world.faults.round_trip().await;
        let (acks, settled) = AckQueue::new();
        let mut subscription = Subscription {
            channel: Channel(Arc::clone(&world), world.broker.open_channel()),
            world: &world,
            consumer: &consumer,
            lanes: &lanes,
            stop: &stop,
            acks: Arc::new(acks),
            settled,
            window: Window::new(PREFETCH),
            opened: (std::time::Instant::now(), Instant::now()),
        };
        subscription.pump().await;
        if stop.is_cancelled() {
            // The acknowledgements go on until the lanes have ended.
            lanes.ended().await;
            subscription.last_acks().await;
            return;
        }
        if consumer.gate.turns_away() || subscription.acks.is_closed() {
            subscription.acks.close();
            world.broker.notice(subscription.channel.1);
            let emptied = tokio::time::timeout(LEAVE_PATIENCE, consumer.gate.emptied());
            let _ = emptied.await;
            subscription.last_acks().await;
        }
        subscription.acks.close();
        drop(subscription);
        tokio::time::sleep(Duration::from_millis(world.faults.below(300))).await;
    }
}

struct Subscription<'a> {
    channel: Channel,
    world: &'a World,
    consumer: &'a Arc<Consumer>,
    lanes: &'a Lanes,
    stop: &'a CancellationToken,
    acks: Arc<AckQueue>,
    settled: UnboundedReceiver<Settled>,
    window: Window,
    /// The machine's time, and that of the clock that is stopped: the window looks at the first.
    opened: (std::time::Instant, Instant),
}

impl Subscription<'_> {
    /// Until the channel is lost, the consumer is held back, or the host stops.
    async fn pump(&mut self) {
        let (world, channel) = (self.world, self.channel.1);
        loop {
            let more = world.broker.more.notified();
            while !self.wants_out()
                && let Some((tag, queued)) = world.broker.deliver(channel, PREFETCH.into())
            {
                world.faults.round_trip().await;
                if world.faults.sabotage == Sabotage::AckFirst {
                    self.acks.settle(vec![tag]);
                }
                let origin = Origin::Queue(Delivery::new(&self.acks, tag));
                let redelivered =
                    queued.redelivered && world.faults.sabotage != Sabotage::ForgetRedelivered;
                let work = Work::delivered(self.consumer, queued.message, redelivered, origin);
                let identity = work.item.identity.as_ref();
                let partition = identity.map_or(0, |identity| identity.partition);
                self.lanes.send(partition, work).await;
            }
            if world.faults.strikes() {
                world.broker.close_channel(channel);
            }
            if self.wants_out() || !world.broker.is_open(channel) {
                return;
            }
            tokio::select! {
                biased;
                settled = self.settled.recv() => self.note(settled),
                () = more => {}
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(WINDOW_TICK) => {}
            }
            let now = self.opened.0 + self.opened.1.elapsed();
            let frames = self.window.frames(now);
            self.send(frames).await;
        }
    }

    fn wants_out(&self) -> bool {
        self.consumer.gate.turns_away() || self.acks.is_closed() || self.stop.is_cancelled()
    }

    /// What the lanes have settled until now.
    async fn last_acks(&mut self) {
        while let Ok(settled) = self.settled.try_recv() {
            self.note(Some(settled));
        }
        let frames = self.window.last_frames();
        self.send(frames).await;
    }

    /// Every message of the simulation is stored whole, so that all are acknowledged.
    fn note(&mut self, settled: Option<Settled>) {
        if let Some(Settled::Ack(tags)) = settled {
            for tag in tags {
                self.window.settle(tag);
            }
        }
    }

    async fn send(&self, frames: Vec<Frame>) {
        for frame in frames {
            self.world.faults.round_trip().await;
            self.world
                .acknowledge(self.channel.1, frame.tag, frame.multiple);
        }
    }
}

/// A channel that gives back what it holds when its host is gone.
struct Channel(Arc<World>, u64);

impl Drop for Channel {
    fn drop(&mut self) {
        self.0.broker.notice(self.1);
        self.0.broker.close_channel(self.1);
    }
}
