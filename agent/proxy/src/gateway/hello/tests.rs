//! Real ClientHellos, whole and in pieces, and other bytes.

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;

use super::*;

/// The first flight of a real client for a server name (or an address, which is not sent).
fn client_hello(name: &str) -> Vec<u8> {
    isthmus_identity::install_crypto_provider();
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

const DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn the_server_name_is_read_and_all_bytes_are_kept() {
    for (name, expected) in [("istiod.istio-system.svc", Some("istiod.istio-system.svc")), ("10.0.0.1", None)]
    {
        let bytes = client_hello(name);
        let mut whole = &bytes[..];
        let hello = read(&mut whole, DEADLINE).await.unwrap();
        assert_eq!(hello.name.as_deref(), expected);
        assert_eq!(hello.bytes, bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hello_may_arrive_in_single_bytes() {
    let bytes = client_hello("a.example");
    let (mut near, mut far) = tokio::io::duplex(1);
    let sent = bytes.clone();
    let write = async move {
        far.write_all(&sent).await.unwrap();
        far
    };
    let (hello, _far) = tokio::join!(read(&mut near, DEADLINE), write);
    let hello = hello.unwrap();
    assert_eq!(hello.name.as_deref(), Some("a.example"));
    assert_eq!(hello.bytes, bytes);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline_and_a_close_ends_it_early() {
    let (mut near, mut far) = tokio::io::duplex(1024);
    far.write_all(&client_hello("a.example")[..40]).await.unwrap();
    assert!(matches!(read(&mut near, DEADLINE).await, Err(HelloError::Timeout(_))));
    let mut cut = &client_hello("a.example")[..40];
    assert!(matches!(read(&mut cut, DEADLINE).await, Err(HelloError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_client_hello_are_refused() {
    let mut http = &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..];
    assert!(matches!(read(&mut http, DEADLINE).await, Err(HelloError::NotTls(_))));
    // A handshake message that announces more than the limit, in records that never end.
    let mut endless = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff];
    endless.resize(64 * 1024, 0);
    for start in (5 + 0x3fff..endless.len() - 5).step_by(5 + 0x3fff) {
        endless[start..start + 5].copy_from_slice(&[22, 3, 1, 0x3f, 0xff]);
    }
    let mut endless = &endless[..];
    let refused = read(&mut endless, DEADLINE).await;
    assert!(matches!(refused, Err(HelloError::TooLong | HelloError::NotTls(_))), "{refused:?}");
}
