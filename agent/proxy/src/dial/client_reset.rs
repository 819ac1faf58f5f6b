//! Detects that a client reset its connection while an upstream is being connected. Does not read: payload must stay in
//! the socket until the upstream has accepted, and unread payload must not hide a reset behind it.

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Resolves when the client resets its connection. A FIN does not count: a client that has finished sending may still
/// wait for the response.
pub(crate) async fn wait(client: &TcpStream) {
    // The socket cannot be polled: assume that the client is still there.
    if client.ready(Interest::ERROR).await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_reset_is_seen_behind_unread_bytes() {
        let (mut client, accepted) = pair().await;
        client.write_all(b"waiting").await.unwrap();
        accepted.readable().await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        timeout(Duration::from_secs(10), wait(&accepted)).await.unwrap();
    }

    #[tokio::test]
    async fn neither_bytes_nor_a_fin_are_a_reset() {
        let (mut client, accepted) = pair().await;
        client.write_all(b"waiting").await.unwrap();
        client.shutdown().await.unwrap();
        accepted.readable().await.unwrap();
        assert!(timeout(Duration::from_millis(100), wait(&accepted)).await.is_err());
        let mut bytes = [0; 7];
        assert_eq!(accepted.try_read(&mut bytes).unwrap(), 7, "no byte was consumed");
        drop(client);
    }
}
