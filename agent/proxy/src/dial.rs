//! Dials tunnels: TCP, mutual TLS as the source workload, HTTP/2. The pool decides when; see [`Connect`].

use std::net::{IpAddr, SocketAddr};

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::pool::{Connect, ConnectFailure};
use isthmus_hbone::session::TlsSession;
use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;

use crate::error::Error;
use crate::scope::Scope;

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

impl Dialer<'_> {
    async fn dial(&self, key: &PoolKey) -> Result<Tunnel, Error> {
        let world = self.0.world();
        let config = &world.config;
        // Before the network is touched: without a certificate there is nothing to say to anybody.
        let certificate = self.0.certificate(&key.source).await?;
        let tcp = self.0.sockets().connect(key.address, None, config.dial_deadline).await;
        let tcp = tcp.map_err(Error::hbone_dial)?;
        let session =
            TlsSession::connect(certificate.client_config(&key.destinations), tcp, config.tls_deadline)
                .await?;
        Ok(client::handshake(session, &world.settings, self.0.tunnels()).await?)
    }
}

impl Connect<PoolKey> for Dialer<'_> {
    fn connect<'a>(&'a self, key: &'a PoolKey) -> BoxFuture<'a, Result<Tunnel, ConnectFailure>> {
        Box::pin(
            async move { self.dial(key).await.map_err(|error| ConnectFailure::new(error.stage(), error)) },
        )
    }
}
