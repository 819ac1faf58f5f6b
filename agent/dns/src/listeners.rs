//! The listening sockets of a pod's DNS proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use isthmus_sys::socket::{Sockets, Transparent};
use tokio::net::{TcpListener, UdpSocket};

/// UDP and TCP sockets on the loopback addresses of one namespace.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// Neither loopback address could be bound.
#[derive(Debug, thiserror::Error)]
#[error("DNS proxy: {0}")]
pub struct BindError(#[source] isthmus_sys::Error);

impl BindError {
    /// Why the first address could not be bound.
    #[must_use]
    pub fn cause(&self) -> &isthmus_sys::Error {
        &self.0
    }
}

impl Listeners {
    /// Binds UDP and TCP on `127.0.0.1`, and on `::1` if IPv6 is enabled. The failure of one family is tolerated. Must be
    /// called inside a runtime.
    ///
    /// # Errors
    /// When neither family can be bound.
    pub fn bind(sockets: &Sockets, port: u16) -> Result<Self, BindError> {
        let v4 = pair(sockets, Ipv4Addr::LOCALHOST.into(), port);
        let v6 = sockets.ipv6().then(|| pair(sockets, Ipv6Addr::LOCALHOST.into(), port));
        let mut listeners = Self { udp: Vec::new(), tcp: Vec::new() };
        let mut failed = None;
        for (family, made) in [("IPv4", Some(v4)), ("IPv6", v6)] {
            match made {
                Some(Ok((udp, tcp))) => {
                    listeners.udp.push(udp);
                    listeners.tcp.push(tcp);
                }
                Some(Err(error)) => {
                    tracing::debug!(family, %error, "cannot bind the DNS proxy for this address family");
                    failed = failed.or(Some(error));
                }
                None => {}
            }
        }
        match failed {
            Some(error) if listeners.udp.is_empty() => Err(BindError(error)),
            _ => Ok(listeners),
        }
    }

    /// Bound UDP addresses.
    #[must_use]
    pub fn udp_addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Bound TCP addresses.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

fn pair(
    sockets: &Sockets,
    address: IpAddr,
    port: u16,
) -> Result<(UdpSocket, TcpListener), isthmus_sys::Error> {
    let address = SocketAddr::new(address, port);
    let (tcp, _) = sockets.listen(address, Transparent::Never)?;
    Ok((sockets.udp(address)?, tcp))
}
