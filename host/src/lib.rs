//! Hapax runs message handlers so that each message takes effect once.
//!
//! The way of a message is the order of the modules:
//! source → key → ledger → sandbox → effects → commit → ack → relay.

// The way, in its order. A blank line between two keeps rustfmt from sorting them.
pub mod source;

pub mod key;

pub mod ledger;

pub mod sandbox;

pub mod effects;

pub mod commit;

pub mod ack;

pub mod relay;

// What the way is made of.
pub mod consumer;
pub mod failure;
pub mod lane;
pub mod message;
pub mod store;
pub mod sweep;
pub mod waiting;

// The daemon around it.
pub mod amqp;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod failpoint;
pub mod host;
pub mod http;
pub mod metrics;
pub mod operations;
pub mod plugins;
pub mod service;
pub mod telemetry;

// Thousands of days of it, on a stopped clock.
#[cfg(test)]
mod simulation;

// What people type and see.
pub mod cli;
pub mod output;
