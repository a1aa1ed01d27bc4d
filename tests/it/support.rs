//! What the tests stand on: private servers, the real binary, a network that can be broken,
//! and the one assertion that matters, that every order was applied once.
//!
//! Nothing in here knows a particular test.

pub mod broker;
pub mod children;
pub mod clock;
pub mod declared;
pub mod host;
pub mod lines;
pub mod mount;
pub mod orders;
pub mod place;
pub mod ports;
pub mod proxy;
pub mod raw;
pub mod scene;
pub mod servers;
pub mod store;
pub mod toolchain;
pub mod versions;
pub mod wait;
