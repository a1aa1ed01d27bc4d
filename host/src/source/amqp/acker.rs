//! From settled deliveries to acknowledgements on the one channel that they came from.

use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use tokio::sync::mpsc;

use crate::ack::{Settled, Window};
use crate::failpoint::{self, Point};

/// The acknowledgements of one channel, and for how long they have been missing.
pub(super) struct Acker<'a> {
    pub channel: &'a Channel,
    pub settled: mpsc::UnboundedReceiver<Settled>,
    window: Window,
    /// Deliveries that nobody has settled.
    open: usize,
    /// When a delivery was last settled, or came while there was none.
    moved: Instant,
    /// Why a delivery stays in the queue although its message is parked.
    left: Option<String>,
}

impl<'a> Acker<'a> {
    pub fn new(
        channel: &'a Channel,
        settled: mpsc::UnboundedReceiver<Settled>,
        prefetch: u16,
    ) -> Self {
        Self {
            channel,
            settled,
            window: Window::new(prefetch),
            open: 0,
            moved: Instant::now(),
            left: None,
        }
    }

    /// Whether every delivery is settled.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Why a delivery has to stay in the queue, once.
    pub fn take_left(&mut self) -> Option<String> {
        self.left.take()
    }

    /// A delivery has come.
    pub fn delivered(&mut self) {
        let now = Instant::now();
        if self.open == 0 {
            self.moved = now;
        }
        self.open += 1;
        self.window.delivered(now);
    }

    /// For how long deliveries have been open and none of them was settled.
    pub fn held_for(&self) -> Duration {
        match self.open {
            0 => Duration::ZERO,
            _ => self.moved.elapsed(),
        }
    }

    /// How old the oldest delivery is that is not acknowledged. The broker's patience is measured by that one,
    /// however many others are acknowledged meanwhile.
    pub fn oldest_for(&self) -> Duration {
        self.window
            .oldest()
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether `send` has to be called again later, with nothing new settled.
    pub fn is_waiting(&self) -> bool {
        self.window.is_waiting()
    }

    /// Takes what is settled, all of it that is there, and sends the frames.
    pub async fn settle(&mut self, first: Option<Settled>) -> Result<(), lapin::Error> {
        let mut next = first;
        while let Some(settled) = next {
            self.moved = Instant::now();
            match settled {
                Settled::Ack(tags) => {
                    self.open = self.open.saturating_sub(tags.len());
                    for tag in tags {
                        self.window.settle(tag);
                    }
                }
                Settled::Reject(tag) => {
                    self.open = self.open.saturating_sub(1);
                    let options = BasicRejectOptions { requeue: false };
                    self.channel.basic_reject(tag, options).await?;
                    self.window.rejected(tag);
                }
                // Its slot stays open, so that no frame of the window names it.
                Settled::Leave(_, reason) => {
                    self.open = self.open.saturating_sub(1);
                    self.left = Some(reason);
                }
            }
            next = self.settled.try_recv().ok();
        }
        self.send().await
    }

    pub async fn send(&mut self) -> Result<(), lapin::Error> {
        for frame in self.window.frames(Instant::now()) {
            self.ack(frame).await?;
        }
        Ok(())
    }

    /// Sends everything that is settled, holes or not.
    pub async fn finish(&mut self) -> Result<(), lapin::Error> {
        let first = self.settled.try_recv().ok();
        self.settle(first).await?;
        for frame in self.window.last_frames() {
            self.ack(frame).await?;
        }
        Ok(())
    }

    async fn ack(&self, frame: crate::ack::Frame) -> Result<(), lapin::Error> {
        let options = BasicAckOptions {
            multiple: frame.multiple,
        };
        failpoint::pass(Point::BeforeAck);
        let sent = self.channel.basic_ack(frame.tag, options).await;
        failpoint::pass_if(Point::AfterAck, sent.is_ok());
        sent
    }
}
