//! A foreign client of port 15008: TLS with any certificate, frames written by hand. It also nests HBONE in HBONE, as
//! towards the gateway of another network.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_rt::task::Tasks;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{HbonePeer, kind};
use crate::pki::{self, Leaf};

/// Longest wait in one step.
const PATIENCE: Duration = Duration::from_secs(10);
/// The only stream of a connection.
const STREAM: u32 = 1;
/// Largest payload of a frame; every peer accepts this much.
const CHUNK: usize = 16 * 1024;

/// A TLS session of a client with a certificate, or without one. The server must have a certificate under the root,
/// of any identity.
///
/// # Errors
/// When the handshake fails. In TLS 1.3 a server that rejects the client's certificate reports it only in answer to the
/// next bytes.
pub async fn tls<S>(io: S, shown: Option<&Leaf>, root: &str) -> Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(pki::roots(root)?, Arc::clone(&provider)).build()?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Nameless(verifier)));
    let mut config = match shown {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain()?, leaf.private_key()?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let name = ServerName::try_from("any.invalid")?;
    let session = TlsConnector::from(Arc::new(config)).connect(name, io);
    Ok(tokio::time::timeout(PATIENCE, session).await.context("no end of the TLS handshake")??)
}

/// Sends a CONNECT over a session; returns the status and the connection.
///
/// # Errors
/// When the peer closes or breaks the connection, or answers with something else.
pub async fn connect<S>(io: S, authority: &str, headers: &[(&str, &str)]) -> Result<(u16, HbonePeer<S>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut peer = HbonePeer::client(io).await?;
    let head = [&[(":method", "CONNECT"), (":authority", authority)], headers].concat();
    peer.headers(STREAM, &head, false).await?;
    let answer = peer.next(kind::HEADERS).await?.headers()?;
    let status = answer.iter().find(|(name, _)| name == ":status").context("no :status")?;
    Ok((status.1.parse()?, peer))
}

/// The bytes of the tunnel that [`connect`] got. `tasks` owns what carries them.
pub fn bytes<S>(peer: HbonePeer<S>, tasks: &Tasks) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(CHUNK);
    let (read, write) = tokio::io::split(peer.into_inner());
    let (mut from_us, mut to_us) = tokio::io::split(theirs);
    let mut incoming = HbonePeer::resumed(tokio::io::join(read, tokio::io::sink()));
    let mut outgoing = HbonePeer::resumed(tokio::io::join(tokio::io::empty(), write));
    tasks.spawn("tunnel, incoming", async move {
        while let Ok(Some(frame)) = incoming.recv().await {
            let over = frame.ends_stream() || matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY);
            if frame.kind == kind::DATA && to_us.write_all(&frame.payload).await.is_err() || over {
                break;
            }
        }
        // Fails when the reader is gone, which has seen the end then.
        let _ = to_us.shutdown().await;
    });
    tasks.spawn("tunnel, outgoing", async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read) = from_us.read(&mut buffer).await {
            if outgoing.data(STREAM, &buffer[..read], read == 0).await.is_err() || read == 0 {
                break;
            }
        }
    });
    ours
}

/// One HTTP/1.0 request through a tunnel; returns the whole answer.
///
/// # Errors
/// When the tunnel breaks or nothing comes in time.
pub async fn get(mut tunnel: DuplexStream, path: &str) -> Result<String> {
    let exchange = async {
        tunnel.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        tunnel.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let text = tokio::time::timeout(PATIENCE, exchange).await.context("no answer through the tunnel")??;
    ensure!(text.starts_with("HTTP/1."), "no HTTP answer: {text:?}");
    Ok(text)
}

/// Checks everything but the name: mesh certificates carry no DNS name.
#[derive(Debug)]
struct Nameless(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Nameless {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
