//! Dials tunnels: TCP, mutual TLS with the source workload's certificate, HTTP/2. Implements the pool's [`Connect`];
//! the pool decides when to dial.

use std::sync::Arc;

use isthmus_hbone::Settings;
use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::pool::{Connect, ConnectFailure};
use isthmus_hbone::session::TlsSession;
use isthmus_rt::BoxFuture;
use isthmus_rt::descriptors::DescriptorShare;
use isthmus_rt::task::Tasks;
use isthmus_rt::threads::Offload;
use isthmus_sys::socket::Sockets;

use super::revocable::Revocable;
use crate::context::{PodContext, ProxyContext};
use crate::error::Error;
use crate::types::{PoolKey, Reporter};

/// Dials on behalf of a pod, with its sockets.
pub(crate) struct Dialer<'a>(pub(crate) &'a PodContext);

/// One dial. It owns its data: a dial continues for the pool when the connection that started it is gone.
struct Dial {
    proxy: Arc<ProxyContext>,
    sockets: Sockets,
    descriptors: DescriptorShare,
    tunnels: Tasks,
    settings: Settings,
    key: PoolKey,
    reporter: Reporter,
}

impl Dial {
    async fn run(self) -> Result<Tunnel, Error> {
        let Self { proxy, sockets, descriptors, tunnels, settings, key, reporter } = self;
        let config = &proxy.config;
        // First, so that a missing certificate causes no traffic.
        let certificate = proxy.certificate(&key.source).await?;
        let descriptor = descriptors.acquire().ok_or(Error::NoDescriptor)?;
        let tcp = sockets.connect(key.address, None, config.dial_deadline).await;
        let tcp = tcp.map_err(Error::hbone_dial)?;
        let tls = certificate.client_tls(&key.destinations);
        let offload = Offload::new(&tunnels, &proxy.threads);
        let outcome = TlsSession::connect_on(&offload, tls.config(), tcp, config.tls_deadline).await;
        let (session, _) = Revocable::after_handshake(outcome, &tls, &proxy.metrics, reporter)?;
        Ok(client::start(session.with_descriptor(descriptor), &settings, &tunnels)?)
    }
}

impl Connect<PoolKey> for Dialer<'_> {
    fn connect(&self, key: &PoolKey) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>> {
        let ctx = self.0;
        let (sockets, tunnels) = (ctx.sockets().clone(), ctx.tunnels().clone());
        let descriptors = ctx.descriptors().clone();
        let (key, reporter) = (key.clone(), ctx.reporter());
        let settings = ctx.settings().clone();
        let dial = Dial { proxy: ctx.shared_proxy(), sockets, descriptors, tunnels, settings, key, reporter };
        Box::pin(async move { dial.run().await.map_err(|error| ConnectFailure::new(error.stage(), error)) })
    }
}
