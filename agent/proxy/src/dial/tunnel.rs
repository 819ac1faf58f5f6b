//! Dials tunnels: TCP, mutual TLS as the source workload, HTTP/2. The pool decides when; see [`Connect`].

use super::revocable::Revocable;
use std::sync::Arc;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::pool::{Connect, ConnectFailure};
use isthmus_hbone::session::TlsSession;
use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Sockets;

use crate::context::{PodContext, ProxyContext};
use crate::error::Error;
use crate::types::{PoolKey, Reporter};

/// Dials on behalf of a pod.
pub(crate) struct Dialer<'a>(pub(crate) &'a PodContext);

/// One dial. It owns what it needs: it may outlive the connection for whose sake it was begun.
struct Dial {
    proxy: Arc<ProxyContext>,
    sockets: Sockets,
    tunnels: Tasks,
    key: PoolKey,
    reporter: Reporter,
}

impl Dial {
    async fn run(self) -> Result<Tunnel, Error> {
        let Self { proxy, sockets, tunnels, key, reporter } = self;
        let config = &proxy.config;
        // Before the network is touched: without a certificate there is nothing to say to anybody.
        let certificate = proxy.certificate(&key.source).await?;
        let tcp = sockets.connect(key.address, None, config.dial_deadline).await;
        let tcp = tcp.map_err(Error::hbone_dial)?;
        let tls = certificate.client_tls(&key.destinations);
        let outcome = TlsSession::connect(tls.config(), tcp, config.tls_deadline).await;
        let (session, _) = Revocable::after_handshake(outcome, &tls, &proxy.metrics, reporter)?;
        Ok(client::handshake(session, &proxy.settings, &tunnels).await?)
    }
}

impl Connect<PoolKey> for Dialer<'_> {
    fn connect(&self, key: &PoolKey) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>> {
        let ctx = self.0;
        let (sockets, tunnels) = (ctx.sockets().clone(), ctx.tunnels().clone());
        let (key, reporter) = (key.clone(), ctx.reporter());
        let dial = Dial { proxy: ctx.shared_proxy(), sockets, tunnels, key, reporter };
        Box::pin(async move { dial.run().await.map_err(|error| ConnectFailure::new(error.stage(), error)) })
    }
}
