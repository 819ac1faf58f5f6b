//! Dials tunnels: TCP, mutual TLS as the source workload, HTTP/2. The pool decides when; see [`Connect`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::pool::{Connect, ConnectFailure};
use isthmus_hbone::session::TlsSession;
use isthmus_identity::PeerRole;
use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Sockets;

use crate::error::Error;
use crate::metrics::Reporter;
use crate::revocable::Revocable;
use crate::scope::Scope;
use crate::world::World;

/// Connections may share a tunnel when all of this is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// Whose certificate we show.
    pub(crate) source: SpiffeId,
    /// Whom we expect; any of them will do.
    pub(crate) destinations: Vec<SpiffeId>,
    /// Where.
    pub(crate) address: SocketAddr,
    /// The client's address. Tunnels are not shared between clients of different addresses, so that what the far end
    /// sees of the TCP connection is one client's.
    pub(crate) source_ip: IpAddr,
}

/// Dials on behalf of a pod.
pub(crate) struct Dialer<'a>(pub(crate) &'a Scope);

/// One dial. It owns what it needs: it may outlive the connection for whose sake it was begun.
struct Dial {
    world: Arc<World>,
    sockets: Sockets,
    tunnels: Tasks,
    key: PoolKey,
    reporter: Reporter,
}

impl Dial {
    async fn run(self) -> Result<Tunnel, Error> {
        let Self { world, sockets, tunnels, key, reporter } = self;
        let config = &world.config;
        // Before the network is touched: without a certificate there is nothing to say to anybody.
        let certificate = world.certificate(&key.source).await?;
        let tcp = sockets.connect(key.address, None, config.dial_deadline).await;
        let tcp = tcp.map_err(Error::hbone_dial)?;
        let tls = certificate.client_config(&key.destinations);
        let done = TlsSession::connect(tls, tcp, config.tls_deadline).await;
        let session = Revocable::of(done, &certificate, PeerRole::Server, &world.metrics, reporter)?;
        Ok(client::handshake(session, &world.settings, &tunnels).await?)
    }
}

impl Connect<PoolKey> for Dialer<'_> {
    fn connect(&self, key: &PoolKey) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>> {
        let scope = self.0;
        let (sockets, tunnels) = (scope.sockets().clone(), scope.tunnels().clone());
        let (key, reporter) = (key.clone(), scope.reporter());
        let dial = Dial { world: scope.shared_world(), sockets, tunnels, key, reporter };
        Box::pin(async move { dial.run().await.map_err(|error| ConnectFailure::new(error.stage(), error)) })
    }
}
