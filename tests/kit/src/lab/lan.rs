//! Hosts on a wire: namespaces joined by veth pairs and a bridge, with addresses and routes.

use std::cell::Cell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use isthmus_rt::task::Tasks;
use isthmus_sys::IpNet;
use isthmus_sys::netns::Netns;
use isthmus_sys::route;
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time for a connection of a test to be established, or for its answer.
const SOON: Duration = Duration::from_secs(10);

/// A bridge and the hosts on it. The bridge's own namespace is the hosts' default gateway and stands for the node.
#[derive(Debug)]
pub struct Lan {
    /// The namespace with the bridge `br0`.
    pub node: Arc<Netns>,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    subnet: u8,
    hosts: Cell<u8>,
}

/// A namespace with one interface, `eth0`.
#[derive(Debug, Clone)]
pub struct Host {
    /// The namespace.
    pub netns: Arc<Netns>,
    /// Its address, /24.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, /64.
    pub v6: Ipv6Addr,
}

impl Host {
    /// Sockets inside the host.
    #[must_use]
    pub fn sockets(&self) -> Sockets {
        Sockets::in_netns(Arc::clone(&self.netns))
    }
}

impl Lan {
    /// A bridge on 10.77.1.1/24 and fd00:77:1::1/64, in a new namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> anyhow::Result<Self> {
        Self::numbered(1)
    }

    /// A bridge on 10.77.N.1/24 and fd00:77:N::1/64, in a new namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn numbered(subnet: u8) -> anyhow::Result<Self> {
        let node = Arc::new(Netns::create()?);
        route::add_bridge(&node, "br0")?;
        let (v4, v6) = addresses(subnet, 1);
        route::add_address(&node, "br0", net(v4.into(), 24)?)?;
        route::add_address(&node, "br0", net(v6.into(), 64)?)?;
        Ok(Self { node, v4, v6, subnet, hosts: Cell::new(1) })
    }

    /// One more host on the bridge: the next address, the node as its default gateway.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn host(&self) -> anyhow::Result<Host> {
        let number = self.hosts.get() + 1;
        self.hosts.set(number);
        let (v4, v6) = addresses(self.subnet, number);
        let netns = Arc::new(Netns::create()?);
        let port = format!("veth{number}");
        route::add_veth(&self.node, &port, &netns, "eth0")?;
        route::set_master(&self.node, &port, "br0")?;
        route::set_up(&self.node, &port)?;
        route::set_up(&netns, "eth0")?;
        route::add_address(&netns, "eth0", net(v4.into(), 24)?)?;
        route::add_address(&netns, "eth0", net(v6.into(), 64)?)?;
        route::add_route(&netns, net(Ipv4Addr::UNSPECIFIED.into(), 0)?, Some(self.v4.into()), Some("eth0"))?;
        route::add_route(&netns, net(Ipv6Addr::UNSPECIFIED.into(), 0)?, Some(self.v6.into()), Some("eth0"))?;
        Ok(Host { netns, v4, v6 })
    }

    /// Sockets on the node itself.
    #[must_use]
    pub fn sockets(&self) -> Sockets {
        Sockets::in_netns(Arc::clone(&self.node))
    }
}

/// Joins two namespaces directly, each end up and with its addresses.
///
/// # Errors
/// When a name is taken or the kernel refuses.
pub fn veth(a: (&Netns, &str, &[IpNet]), b: (&Netns, &str, &[IpNet])) -> anyhow::Result<()> {
    route::add_veth(a.0, a.1, b.0, b.1)?;
    for (netns, ifname, addresses) in [a, b] {
        route::set_up(netns, ifname)?;
        addresses.iter().try_for_each(|address| route::add_address(netns, ifname, *address))?;
    }
    Ok(())
}

/// Runs a future on a runtime of the calling thread.
///
/// # Errors
/// When there can be no runtime, or the future's own.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Runs asynchronous code that makes its own sockets inside a namespace, on a thread of its own.
///
/// # Errors
/// When the namespace cannot be entered, or the future's own.
pub fn in_ns<T, F>(netns: &Netns, make: impl FnOnce() -> F + Send) -> anyhow::Result<T>
where
    T: Send,
    F: Future<Output = anyhow::Result<T>>,
{
    netns.run_thread(|| block_on(make()))?
}

/// Starts a server that echoes until the peer has sent its FIN. Returns its address.
///
/// # Errors
/// When the address cannot be listened on.
pub fn echo(sockets: &Sockets, addr: SocketAddr, tasks: &Tasks) -> anyhow::Result<SocketAddr> {
    let (listener, _) = sockets.listen(addr, Transparent::Never)?;
    let bound = listener.local_addr()?;
    let connections = Tasks::new("echo");
    tasks.spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn("echo connection", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    Ok(bound)
}

/// Sends bytes and a FIN, and returns the whole answer.
///
/// # Errors
/// When the connection breaks or takes too long.
pub async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let talk = async {
        // Concurrently: the peer may answer before it has received everything.
        let send = async {
            write.write_all(bytes).await?;
            write.shutdown().await
        };
        tokio::try_join!(send, read.read_to_end(&mut answer))?;
        Ok(())
    };
    let done: std::io::Result<()> = tokio::time::timeout(SOON, talk).await.context("no answer")?;
    done?;
    Ok(answer)
}

fn addresses(subnet: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x77, subnet.into(), 0, 0, 0, 0, host.into());
    (Ipv4Addr::new(10, 77, subnet, host), v6)
}

fn net(ip: IpAddr, prefix: u8) -> anyhow::Result<IpNet> {
    Ok(IpNet::new(ip, prefix)?)
}
