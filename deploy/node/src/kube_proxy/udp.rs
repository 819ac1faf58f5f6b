//! UDP: a socket towards an endpoint for each client, kept while datagrams flow.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::task::Tasks;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::{Backends, choose};

/// As conntrack: a flow without answer in this time is over.
const IDLE: Duration = Duration::from_secs(30);
/// The largest datagram.
const LARGEST: usize = 65_535;
/// More clients than this at a time and the oldest flows are forgotten.
const FLOWS: usize = 1024;

/// Listens on `front`; runs until `tasks` is dropped.
pub(super) fn open(front: SocketAddr, backends: Backends, tasks: &Tasks) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind(front)?;
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let flows =
        Flows { socket, backends, tasks: Tasks::new(format!("flows to {front}")), open: HashMap::new() };
    tasks.spawn("listener", flows.run());
    Ok(())
}

struct Flows {
    socket: Arc<UdpSocket>,
    backends: Backends,
    tasks: Tasks,
    open: HashMap<SocketAddr, (Arc<UdpSocket>, AbortHandle)>,
}

impl Flows {
    async fn run(mut self) {
        let mut datagram = vec![0; LARGEST];
        loop {
            // An error tells that an earlier answer was not delivered; nothing is wrong with the socket.
            let Ok((length, client)) = self.socket.recv_from(&mut datagram).await else { continue };
            if let Err(error) = self.forward(client, &datagram[..length]).await {
                tracing::info!(%client, %error, "cannot forward a datagram, dropping it");
                self.open.remove(&client);
            }
        }
    }

    async fn forward(&mut self, client: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        if let Some((server, back)) = self.open.get(&client)
            && !back.is_finished()
        {
            return server.send(datagram).await.map(|_| ());
        }
        if self.open.len() >= FLOWS {
            self.open.retain(|_, (_, back)| !back.is_finished());
        }
        if self.open.len() >= FLOWS {
            self.open.drain().for_each(|(_, (_, back))| back.abort());
        }
        let none = || io::Error::new(io::ErrorKind::NotConnected, "no endpoint is ready");
        let to = choose(&self.backends).ok_or_else(none)?;
        let server = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?);
        server.connect(to).await?;
        server.send(datagram).await?;
        let back = carry_back(Arc::clone(&server), Arc::clone(&self.socket), client);
        let back = self.tasks.spawn("flow", back);
        self.open.insert(client, (server, back));
        Ok(())
    }
}

async fn carry_back(server: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr) {
    let mut datagram = vec![0; LARGEST];
    while let Ok(Ok(length)) = tokio::time::timeout(IDLE, server.recv(&mut datagram)).await {
        if front.send_to(&datagram[..length], client).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn answers_come_from_the_front_to_their_own_client() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (_set, backends) = watch::channel(BTreeSet::from([server.local_addr().unwrap()]));
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let front = free.local_addr().unwrap();
        drop(free);
        let tasks = Tasks::new("test");
        open(front, backends, &tasks).unwrap();
        let mut clients = Vec::new();
        for name in ["a", "b", "a again"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(name.as_bytes(), front).await.unwrap();
            clients.push((client, name));
        }
        let mut datagram = [0; 64];
        for _ in &clients {
            let (length, from) = server.recv_from(&mut datagram).await.unwrap();
            server.send_to(&datagram[..length], from).await.unwrap();
        }
        for (client, name) in clients {
            let (length, from) = client.recv_from(&mut datagram).await.unwrap();
            assert_eq!((&datagram[..length], from), (name.as_bytes(), front));
        }
    }
}
