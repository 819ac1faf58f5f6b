//! TCP: a connection to an endpoint for each connection that comes, bytes carried half-close by half-close.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_rt::task::Tasks;
use isthmus_sys::socket::reset_on_close;
use tokio::net::{TcpListener, TcpStream};

use super::{Backends, choose};

/// An endpoint that does not answer in this time is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// Listens on `front`; runs until `tasks` is dropped.
pub(super) fn open(front: SocketAddr, backends: Backends, tasks: &Tasks) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(front)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // Connections have a group of their own, owned by the listener's task: a task cannot own its own group.
    let connections = Tasks::new(format!("connections to {front}"));
    tasks.spawn("listener", async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    _ = connections.spawn("connection", carry(client, front, backends.clone()))
                }
                Err(error) => {
                    tracing::warn!(%front, %error, "cannot accept a connection to a Service");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn carry(mut client: TcpStream, front: SocketAddr, backends: Backends) {
    let mut server = match connect(&backends).await {
        Ok(server) => server,
        Err(error) => {
            tracing::info!(%front, %error, "no endpoint accepts the connection, resetting it");
            // As the kernel refuses a service without endpoints.
            reset_on_close(&client);
            return;
        }
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    if tokio::io::copy_bidirectional(&mut client, &mut server).await.is_err() {
        reset_on_close(&client);
        reset_on_close(&server);
    }
}

async fn connect(backends: &Backends) -> io::Result<TcpStream> {
    let none = || io::Error::new(io::ErrorKind::NotConnected, "none is ready");
    let to = choose(backends).ok_or_else(none)?;
    tokio::time::timeout(CONNECT, TcpStream::connect(to)).await?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    use super::*;

    /// A front on a free port.
    fn front(backends: Backends, tasks: &Tasks) -> SocketAddr {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let front = free.local_addr().unwrap();
        drop(free);
        open(front, backends, tasks).unwrap();
        front
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_half_close_is_passed_on() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_set, backends) = watch::channel(BTreeSet::from([server.local_addr().unwrap()]));
        let tasks = Tasks::new("test");
        let mut client = TcpStream::connect(front(backends, &tasks)).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        served.read_to_string(&mut question).await.unwrap();
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test]
    async fn without_endpoints_a_connection_is_reset() {
        let (_set, backends) = watch::channel(BTreeSet::new());
        let tasks = Tasks::new("test");
        let mut client = TcpStream::connect(front(backends, &tasks)).await.unwrap();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
