//! Hapax runs message handlers so that each message takes effect once.
//!
//! The modules stand in the order in which a message travels:
//! source → key → ledger → sandbox → effects → commit → ack → relay.

pub mod config;
pub mod effects;
pub mod failure;
pub mod message;
pub mod sandbox;
pub mod store;
