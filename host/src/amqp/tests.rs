use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A method of the connection, in its frame.
fn frame(method: u8, arguments: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, 0, 0];
    let size = u32::try_from(4 + arguments.len()).unwrap();
    frame.extend(size.to_be_bytes());
    frame.extend([0, 10, 0, method]);
    frame.extend(arguments);
    frame.push(0xce);
    frame
}

/// Reads frames until the client has called this method of the connection.
async fn until_called(client: &mut TcpStream, method: u8) {
    loop {
        let mut head = [0; 7];
        client.read_exact(&mut head).await.unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; size as usize + 1];
        client.read_exact(&mut payload).await.unwrap();
        if head[0] == 1 && payload[..4] == [0, 10, 0, method] {
            return;
        }
    }
}

/// Lets a client in, and has nothing to say when it closes.
async fn broker(listener: TcpListener) -> TcpStream {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut header = [0; 8];
    client.read_exact(&mut header).await.unwrap();
    let start = b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
    client.write_all(&frame(10, start)).await.unwrap();
    until_called(&mut client, 11).await;
    // 100 channels, frames of 128 KiB, and no heartbeats that would tell that the broker is gone.
    let tune = [0, 100, 0, 2, 0, 0, 0, 0];
    client.write_all(&frame(30, &tune)).await.unwrap();
    until_called(&mut client, 40).await;
    client.write_all(&frame(41, &[0])).await.unwrap();
    until_called(&mut client, 50).await;
    client
}

#[tokio::test]
async fn a_broker_that_does_not_say_goodbye_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}", listener.local_addr().unwrap());
    let broker = tokio::spawn(broker(listener));
    let address = Address {
        url: Secret::url(url),
        heartbeat: Duration::ZERO,
        connect_timeout: PATIENCE,
    };
    let connection = address.connect("test").await.unwrap();
    tokio::time::timeout(PATIENCE, close(&connection))
        .await
        .expect("the goodbye is given up");
    // It was said, and the line is still open.
    drop(broker.await.unwrap());
}
