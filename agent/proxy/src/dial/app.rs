//! Connects an inbound connection to the application, with the client's source address where the kernel allows it.

use std::net::{IpAddr, SocketAddr};

use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_sys::socket::ConnectError;
use tokio::net::TcpStream;

use crate::context::PodContext;
use crate::error::Error;

/// Connects to the pod's application with the client's source address. If that cannot be bound, connects with the
/// proxy's own address and logs a warning: the application loses the address, not the connection. The caller turns on
/// the keepalive, and keeps the permit for as long as the connection.
pub(crate) async fn dial(
    ctx: &PodContext,
    source: SocketAddr,
    target: SocketAddr,
) -> Result<(TcpStream, DescriptorPermit), Error> {
    let descriptor = ctx.descriptor()?;
    let deadline = ctx.proxy().config.dial_deadline;
    if let Some(from) = client_source(ctx.uses_client_source(), source.ip(), target.ip()) {
        match ctx.local_sockets().connect_young(target, Some(from), deadline).await {
            Err(ConnectError::Setup(error)) => {
                tracing::warn!(
                    pod = %ctx.name(), %source, dst = %target, %error,
                    "cannot use the client's source address, the application sees the proxy's instead"
                );
            }
            connected => return Ok((connected.map_err(Error::Connect)?, descriptor)),
        }
    }
    let connected = ctx.local_sockets().connect_young(target, None, deadline).await;
    Ok((connected.map_err(Error::Connect)?, descriptor))
}

/// The client's address, if the application's answers would reach the proxy with it: the families must be equal, and
/// packets between a loopback and another address are dropped as martians.
fn client_source(allowed: bool, source: IpAddr, target: IpAddr) -> Option<IpAddr> {
    let usable = source.is_ipv4() == target.is_ipv4() && source.is_loopback() == target.is_loopback();
    (allowed && usable).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_source_is_used_only_where_answers_can_be_routed() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(client_source(true, ip("10.0.0.1"), ip("10.0.0.2")), Some(ip("10.0.0.1")));
        assert_eq!(client_source(false, ip("10.0.0.1"), ip("10.0.0.2")), None);
        assert_eq!(client_source(true, ip("10.0.0.1"), ip("2001:db8::1")), None);
        assert_eq!(client_source(true, ip("10.0.0.1"), ip("127.0.0.1")), None);
        assert_eq!(client_source(true, ip("127.0.0.1"), ip("127.0.0.2")), Some(ip("127.0.0.1")));
    }
}
