use std::io::Read;
use std::time::Duration;

use futures_util::FutureExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
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
    let address = address(url);
    let connection = address.connect("test").await.unwrap();
    tokio::time::timeout(PATIENCE, close(&connection))
        .await
        .expect("the goodbye is given up");
    // It was said, and the line is still open.
    drop(broker.await.unwrap());
}

/// A port on both loopback addresses: what an IPv6 literal must reach, and what it must not.
async fn twins() -> (TcpListener, TcpListener) {
    loop {
        let meant = TcpListener::bind("[::1]:0").await.unwrap();
        let port = meant.local_addr().unwrap().port();
        // Another program may have it.
        if let Ok(other) = TcpListener::bind(("127.0.0.1", port)).await {
            return (meant, other);
        }
    }
}

fn address(url: String) -> Address {
    Address {
        url: Secret::url(url),
        heartbeat: Duration::ZERO,
        connect_timeout: PATIENCE,
    }
}

#[tokio::test]
async fn an_ipv6_literal_reaches_what_it_names() {
    let (meant, other) = twins().await;
    let port = meant.local_addr().unwrap().port();
    let broker = tokio::spawn(broker(meant));
    let address = address(format!("amqp://guest:guest@[::1]:{port}/"));
    let screen = Arc::new(Screen::open());
    let connection = address
        .connect_screened("test", screen.clone())
        .await
        .unwrap();
    // This one says nothing of itself.
    assert_eq!(screen.server_version(), None);
    assert_eq!(screen.server().unwrap().product, "");
    close(&connection).await;
    drop(broker.await.unwrap());
    assert!(other.accept().now_or_never().is_none());
}

/// Lets one client in with the certificate of the tests, and tells what it said first and which name it asked for.
fn tls_broker(listener: std::net::TcpListener) -> std::io::Result<([u8; 8], Option<String>)> {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (socket, _) = listener.accept()?;
    let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, socket);
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    Ok((header, stream.conn.server_name().map(str::to_owned)))
}

/// A certificate for the address ::1, and for nothing else.
const CERTIFICATE: &str = include_str!("../../../tests/fixtures/tls/certificate.pem");
const KEY: &str = include_str!("../../../tests/fixtures/tls/key.pem");

/// Connects with TLS to the broker of the tests, trusting its certificate.
async fn hello(
    listener: std::net::TcpListener,
    host: &str,
) -> (ConnectError, std::io::Result<([u8; 8], Option<String>)>) {
    let port = listener.local_addr().unwrap().port();
    let broker = tokio::task::spawn_blocking(move || tls_broker(listener));
    let tls = OwnedTLSConfig {
        identity: None,
        cert_chain: Some(CERTIFICATE.to_owned()),
    };
    let address = address(format!("amqps://guest:guest@{host}:{port}/"));
    let connecting = address.connect_with("test", Arc::new(Screen::open()), tls);
    // It hangs up after the first word.
    let error = connecting.await.unwrap_err();
    (error, broker.await.unwrap())
}

#[tokio::test]
async fn an_ipv6_literal_is_the_name_that_a_certificate_must_hold() {
    let (meant, other) = twins().await;
    let meant = meant.into_std().unwrap();
    meant.set_nonblocking(false).unwrap();
    let (_, heard) = hello(meant, "[::1]").await;
    let (header, name) = heard.unwrap();
    assert_eq!(&header, b"AMQP\0\0\x09\x01");
    assert_eq!(name, None, "an address is never asked for as a name");
    assert!(other.accept().now_or_never().is_none());
    // The same certificate is none for another address.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (error, heard) = hello(other, "127.0.0.1").await;
    assert!(heard.is_err());
    assert!(error.to_string().contains("not valid for"), "{error}");
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_named_for_what_it_is() {
    // What RabbitMQ answers: on its TLS port to AMQP, and on its plain port to TLS.
    let alert = b"\x15\x03\x03\0\x02\x02\x28";
    for (scheme, answer, text) in [
        ("amqp", &alert[..], "write `amqps://` in place of `amqp://`"),
        (
            "amqp",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "does not speak AMQP 0-9-1",
        ),
        (
            "amqps",
            b"AMQP\0\0\x09\x01",
            "write `amqp://` in place of `amqps://`",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            client.read_exact(&mut [0; 8]).await.unwrap();
            client.write_all(answer).await.unwrap();
            // Until it hangs up.
            let _ = client.read_to_end(&mut Vec::new()).await;
        });
        let error = address(format!("{scheme}://guest:hunter2@127.0.0.1:{port}/"))
            .connect("test")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_url_that_is_not_clear_is_refused_before_anything_is_looked_up() {
    let error = address("amqp://guest:p@localhost#hunter2@broker/".to_owned())
        .connect("test")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Url(..)), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}
