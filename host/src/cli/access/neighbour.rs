//! Whose program listens on an address of this machine, as Linux tells it.
//!
//! Any user may listen on a free port, and who shows a token there gives it away. Where nothing is told, nothing is
//! known.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The tables of connections, for both kinds of addresses.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// `TCP_LISTEN`.
const LISTENS: &str = "0A";

/// Why a token may not be shown at an address: another user listens there than the one whose token it is.
#[cfg(unix)]
pub(super) fn is_foreign(address: SocketAddr, token: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(token).ok()?.uid();
    let table = TABLES[usize::from(address.is_ipv6())];
    let user = listener(&std::fs::read_to_string(table).ok()?, address)?;
    let name = crate::http::user;
    (user != owner && user != 0).then(|| {
        format!(
            "what listens at {address} is a program of {}, and the token in {} is {}'s: it is not shown there",
            name(user),
            token.display(),
            name(owner)
        )
    })
}

#[cfg(not(unix))]
pub(super) fn is_foreign(_: SocketAddr, _: &Path) -> Option<String> {
    None
}

/// The number of the user who listens on an address or on all addresses, in a table of connections.
fn listener(table: &str, address: SocketAddr) -> Option<u32> {
    let all = SocketAddr::new(
        match address.ip() {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        },
        address.port(),
    );
    let of = |address| {
        let written = written(address);
        table.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let is_it = fields.nth(1)? == written && fields.nth(1)? == LISTENS;
            is_it.then(|| fields.nth(3)?.parse().ok()).flatten()
        })
    };
    of(address).or_else(|| of(all))
}

/// An address as the tables have it: words of four bytes in the order of the machine, in hexadecimal digits.
fn written(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = bytes.chunks_exact(4).map(|word| {
        let word = u32::from_ne_bytes(word.try_into().expect("four bytes"));
        format!("{word:08X}")
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_user_who_listens_is_found() {
        let own = rustix::process::geteuid().as_raw();
        for any in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            // A machine may have no addresses of this kind.
            let Ok(listener) = std::net::TcpListener::bind(any) else {
                continue;
            };
            let bound = listener.local_addr().expect("an address");
            let reached = match bound.ip() {
                ip if ip.is_unspecified() => SocketAddr::new([127, 0, 0, 1].into(), bound.port()),
                _ => bound,
            };
            let table = TABLES[usize::from(bound.is_ipv6())];
            let table = std::fs::read_to_string(table).expect("Linux has it");
            assert_eq!(super::listener(&table, reached), Some(own), "{any}");
            drop(listener);
        }
    }

    #[test]
    fn a_connection_is_no_listener() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:24FE 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n\
             1: 0100007F:24FE 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 2 1\n";
        let user = |address: &str| listener(table, address.parse().expect("an address"));
        if cfg!(target_endian = "little") {
            assert_eq!(user("127.0.0.1:9470"), Some(999));
            assert_eq!(user("127.0.0.1:9471"), None);
        }
    }
}
