//! Connects in plaintext with the source address of the pod that the application uses: one that it has bound, or that its
//! own route gave it. The agent's socket would otherwise get the address of the pod's default route.

use std::net::{IpAddr, SocketAddr};

use isthmus_model::Workload;
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_sys::socket::ConnectError;
use tokio::net::TcpStream;

use crate::context::PodContext;
use crate::error::Error;

/// Connects to `to` from `source`, if that is an address of the pod. The packets of a guest that the pod forwards have
/// another one: the answers to it would never reach the agent.
pub(crate) async fn dial(
    ctx: &PodContext,
    source: IpAddr,
    workload: &Workload,
    to: SocketAddr,
) -> Result<(TcpStream, DescriptorPermit), Error> {
    let descriptor = ctx.descriptor()?;
    let deadline = ctx.proxy().config.dial_deadline;
    let fits = source.is_ipv4() == to.is_ipv4() && source.is_loopback() == to.ip().is_loopback();
    if fits && (workload.addresses.contains(&source) || ctx.has_unlisted_address(source)) {
        match ctx.sockets().connect_from_local(to, source, deadline).await {
            Err(ConnectError::Setup(error)) => {
                tracing::debug!(
                    pod = %ctx.name(), %source, dst = %to, %error,
                    "cannot use the application's source address, the server sees the pod's default one"
                );
            }
            connected => return Ok((connected.map_err(Error::Connect)?, descriptor)),
        }
    }
    let connected = ctx.sockets().connect(to, None, deadline).await;
    Ok((connected.map_err(Error::Connect)?, descriptor))
}
