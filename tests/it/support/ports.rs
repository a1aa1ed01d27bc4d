//! Hands out free TCP ports on the loopback address.
//!
//! They lie below the range from which Linux takes ports for outgoing connections (32768 and
//! up), so that a server can be stopped and started on the same port without finding it taken.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Mutex;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that nothing listens on now and that no other call of this process was given.
pub fn free() -> u16 {
    let mut given = GIVEN.lock().expect("no holder of this lock panics");
    let given = given.get_or_insert_default();
    loop {
        let port = fastrand::u16(20_000..32_000);
        if given.insert(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
