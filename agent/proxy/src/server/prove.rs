//! The server side of mutual TLS, as the pod, for as long as the client keeps its handshake slot.

use std::future::Future;

use isthmus_hbone::session::TlsSession;
use isthmus_identity::PeerIdentity;
use tokio::net::TcpStream;

use crate::accept::SlotPermit;
use crate::context::PodContext;
use crate::dial::revocable::Revocable;
use crate::error::Error;
use crate::types::Reporter;

/// A peer that finished its handshake, and the session with it.
pub(crate) type Proven = (PeerIdentity, Revocable<TlsSession<TcpStream>>);

/// The server's side of mutual TLS, as the pod. The slot is for the handshake only.
pub(crate) async fn prove(
    ctx: &PodContext,
    stream: TcpStream,
    slot: Option<SlotPermit>,
) -> Result<Proven, Error> {
    in_slot(ctx, slot, handshake(ctx, stream)).await
}

/// Sets a connection up, for as long as it has its slot.
pub(crate) async fn in_slot<T>(
    ctx: &PodContext,
    slot: Option<SlotPermit>,
    set_up: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(mut slot) = slot else { return set_up.await };
    tokio::select! {
        biased;
        done = set_up => done,
        () = slot.evicted() => {
            let config = &ctx.proxy().config;
            Err(Error::HandshakeEvicted { limit: config.handshakes, grace: config.handshake_grace })
        },
    }
}

async fn handshake(ctx: &PodContext, stream: TcpStream) -> Result<Proven, Error> {
    let proxy = ctx.proxy();
    let workload = ctx.workload().await?;
    let certificate = ctx.certificate(&workload.identity()).await?;
    let tls = certificate.server_tls();
    let outcome =
        TlsSession::accept_on(&ctx.offload(), tls.config(), stream, proxy.config.tls_deadline).await;
    let reporter = match ctx.reporter() {
        Reporter::Source | Reporter::Destination => Reporter::Destination,
        Reporter::Gateway => Reporter::Gateway,
    };
    let (session, peer) = Revocable::after_handshake(outcome, &tls, &proxy.metrics, reporter)?;
    Ok((peer.ok_or(Error::NoPeerIdentity)?, session))
}
