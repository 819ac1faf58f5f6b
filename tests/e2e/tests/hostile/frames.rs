//! Attacks by an xDS server on the layers below the protocol: frames, connections, certificates.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::hbone::{HbonePeer, flag, kind};
use isthmus_kit::lab;
use isthmus_kit::pki::Ca;
use isthmus_kit::tls;
use tokio::net::{TcpListener, TcpStream};

use crate::plane::{Expected, PLANE, Plane, PlaneLab};
use crate::world::Cue;

type Connection = HbonePeer<tls::TlsStream<TcpStream>>;

const NAMES: [&str; 1] = ["127.0.0.1"];

/// Answers each stream of a connection with a header and these bytes, and reads the rest.
async fn answer(tcp: TcpStream, ca: &Ca, bytes: &[u8]) -> Result<()> {
    let tls = tls::accept(ca.server(&NAMES)?.server_config(false, &["h2"])?, tcp).await?;
    let mut peer: Connection = HbonePeer::server_with(tls, "").await?;
    while let Some(frame) = peer.recv().await? {
        match frame.kind {
            kind::HEADERS => {
                let headers = [(":status", "200"), ("content-type", "application/grpc")];
                peer.headers(frame.stream, &headers, false).await?;
                peer.data(frame.stream, bytes, false).await?;
            }
            kind::SETTINGS if frame.flags & flag::ACK == 0 => peer.ack_settings().await?,
            kind::PING if frame.flags & flag::ACK == 0 => {
                peer.send(kind::PING, flag::ACK, 0, &frame.payload).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Replaces the control plane by one that treats each connection so, and bounds their number while the attack lasts.
async fn replaced(
    plane: Plane,
    cue: Cue,
    most: usize,
    serve: impl AsyncFn(TcpStream, &Ca) -> Result<()>,
) -> Result<()> {
    let Plane { ca, istiod, stream, .. } = plane;
    drop(stream);
    istiod.stop().await;
    let listener = TcpListener::bind(PLANE).await?;
    let mut connections = 0;
    let endless = async {
        loop {
            let (tcp, _) = listener.accept().await?;
            connections += 1;
            // One after the other: the agent has one stream, and the CA's connection waits.
            let _ = tokio::time::timeout(Duration::from_secs(5), serve(tcp, &ca)).await;
        }
    };
    // Some attempts belong to the height.
    tokio::select! {
        ended = endless => { let _: Result<()> = ended; }
        () = async { tokio::time::sleep(Duration::from_secs(1)).await; cue.hold().await } => {}
    }
    eprintln!("{connections} connections");
    ensure!(connections > 0 && connections < most, "{connections} connections");
    Ok(())
}

pub(crate) fn compression_that_was_not_negotiated_is_one_line() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| {
        replaced(plane, cue, 40, async |tcp, ca| answer(tcp, ca, &[1, 0, 0, 0, 4, 0x1f, 0x8b, 8, 0]).await)
    };
    lab::block_on(async {
        PlaneLab::new()?.judge(Expected::blame(&["127.0.0.1:15012", "compression"]), attack).await
    })
}

pub(crate) fn a_message_that_stalls_changes_nothing() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| {
        // The beginning of a message of 199 MiB, which the agent must not make room for.
        replaced(plane, cue, 40, async |tcp, ca| answer(tcp, ca, &[0, 0x0c, 0x70, 0, 0, 0x12, 0xff]).await)
    };
    lab::block_on(async { PlaneLab::new()?.judge(Expected::blame(&["xDS stream ended"]), attack).await })
}

pub(crate) fn a_server_that_resets_each_connection_is_one_line() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| {
        replaced(plane, cue, 60, async |tcp, _| {
            tcp.set_zero_linger()?;
            Ok(())
        })
    };
    lab::block_on(async {
        PlaneLab::new()?.judge(Expected::blame(&["xDS stream ended", "127.0.0.1:15012"]), attack).await
    })
}

pub(crate) fn a_server_with_a_wrong_certificate_is_one_line() -> Result<()> {
    let attack = |plane: Plane, cue: Cue| async move {
        let other = Arc::new(Ca::new("root")?);
        replaced(plane, cue, 60, async |tcp, _| answer(tcp, &other, &[]).await).await
    };
    lab::block_on(async {
        PlaneLab::new()?.judge(Expected::blame(&["127.0.0.1:15012", "certificate"]), attack).await
    })
}
