//! Connects to the port that the message names, over TCP, and sends to it over UDP; looks a name up, too.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<u16>,
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(port) = order.sin {
        let address = (Ipv4Addr::LOCALHOST, port);
        let tcp = TcpStream::connect(address).and_then(|mut stream| stream.write_all(b"sin"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| socket.send_to(b"sin", address))
            .map(drop);
        let name = ("localhost", port).to_socket_addrs().map(drop);
        return Err(Failure::reject(format!(
            "{tcp:?} {listener:?} {udp:?} {name:?}"
        )));
    }
    Ok(Outcome::Done)
}
