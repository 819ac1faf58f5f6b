//! The last step of an inbound connection: to the application, from the client's address where that can be.

use std::net::{IpAddr, SocketAddr};

use isthmus_sys::socket::ConnectError;
use tokio::net::TcpStream;

use crate::context::PodContext;
use crate::error::Error;

/// Connects to the application of the pod. It shall see the client's address; where that cannot be set up it sees ours,
/// which is said once per connection and is no reason to refuse.
pub(crate) async fn dial(
    ctx: &PodContext,
    source: SocketAddr,
    target: SocketAddr,
) -> Result<TcpStream, Error> {
    let deadline = ctx.proxy().config.dial_deadline;
    if let Some(from) = spoofed(ctx.may_spoof(), source.ip(), target.ip()) {
        match ctx.sockets().connect(target, Some(from), deadline).await {
            Err(ConnectError::Setup(error)) => {
                tracing::warn!(pod = %ctx.name(), %source, %error, "the application will not see the client's address");
            }
            done => return done.map_err(Error::Connect),
        }
    }
    ctx.sockets().connect(target, None, deadline).await.map_err(Error::Connect)
}

/// The address to borrow: only of the target's family, and not a loopback one towards an address that is none.
fn spoofed(allowed: bool, source: IpAddr, target: IpAddr) -> Option<IpAddr> {
    let fits = source.is_ipv4() == target.is_ipv4() && source.is_loopback() == target.is_loopback();
    (allowed && fits).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_borrowed_only_where_an_answer_comes_back() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(spoofed(true, ip("10.0.0.1"), ip("10.0.0.2")), Some(ip("10.0.0.1")));
        assert_eq!(spoofed(false, ip("10.0.0.1"), ip("10.0.0.2")), None);
        assert_eq!(spoofed(true, ip("10.0.0.1"), ip("2001:db8::1")), None);
        assert_eq!(spoofed(true, ip("10.0.0.1"), ip("127.0.0.1")), None);
        assert_eq!(spoofed(true, ip("127.0.0.1"), ip("127.0.0.2")), Some(ip("127.0.0.1")));
    }
}
