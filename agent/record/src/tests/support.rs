//! Both ends of a direction with a known secret, hand-made records, and rustls as the other end of a session.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection, version,
};

use crate::handshake::{Handshaker, Progress, Session};
use crate::key::RecordKey;
use crate::{
    HEADER_LEN, OVERHEAD, Opened, Opener, OpenerParts, PartialMessage, Result, Role, Sealer, SealerParts,
    Suite, TAG_LEN, TrafficSecret,
};

pub(crate) const NAME: &str = "peer.test";

/// A secret of `suite` that is the same at each call.
pub(crate) fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &[7; 48][..suite.secret_len()]).unwrap()
}

pub(crate) fn sealer(suite: Suite) -> Sealer {
    sealer_at(suite, 0)
}

pub(crate) fn sealer_at(suite: Suite, sequence: u64) -> Sealer {
    Sealer::from_parts(SealerParts { secret: secret(suite), sequence, closed: false }).unwrap()
}

pub(crate) fn opener(suite: Suite, role: Role) -> Opener {
    opener_at(suite, role, 0)
}

pub(crate) fn opener_at(suite: Suite, role: Role, sequence: u64) -> Opener {
    let parts = OpenerParts {
        secret: secret(suite),
        sequence,
        role,
        partial: PartialMessage::default(),
        idle_records: 0,
        closed: false,
    };
    Opener::from_parts(parts).unwrap()
}

/// What is taken apart, and put together twice.
pub(crate) trait Copies: Sized {
    fn copies(self) -> (Self, Self);
}

impl Copies for Sealer {
    fn copies(self) -> (Self, Self) {
        let SealerParts { secret, sequence, closed } = self.into_parts();
        let copy = || {
            let secret = TrafficSecret::new(secret.suite(), secret.expose()).unwrap();
            Self::from_parts(SealerParts { secret, sequence, closed }).unwrap()
        };
        (copy(), copy())
    }
}

impl Copies for Opener {
    fn copies(self) -> (Self, Self) {
        let OpenerParts { secret, sequence, role, partial, idle_records, closed } = self.into_parts();
        let copy = || {
            let secret = TrafficSecret::new(secret.suite(), secret.expose()).unwrap();
            Self::from_parts(OpenerParts { secret, sequence, role, partial, idle_records, closed }).unwrap()
        };
        (copy(), copy())
    }
}

/// The record of `payload`.
pub(crate) fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![0xee; payload.len() + OVERHEAD];
    record[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
    sealer.seal(&mut record).unwrap();
    record
}

/// Opens a record and returns the data in it.
pub(crate) fn open(opener: &mut Opener, record: &mut [u8]) -> Result<Vec<u8>> {
    match opener.open(record)? {
        Opened::Data(range) => Ok(record[range].to_vec()),
        other => panic!("{other:?}"),
    }
}

/// Seals what no honest sealer would: any inner plaintext, with content type and padding.
pub(crate) struct Forger(RecordKey);

impl Forger {
    pub(crate) fn new(suite: Suite) -> Self {
        Self(RecordKey::new(&secret(suite), 0).unwrap())
    }

    pub(crate) fn inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let len = u16::try_from(inner.len() + TAG_LEN).unwrap().to_be_bytes();
        let mut record = [&[23, 3, 3, len[0], len[1]], inner, &[0; TAG_LEN]].concat();
        self.0.seal(&mut record).unwrap();
        record
    }

    pub(crate) fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.inner(&[content, &[kind]].concat())
    }
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) cert: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        Self { cert: made.cert.der().clone(), key: made.signing_key.serialize_der() }
    }

    fn chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.cert.clone()], PrivateKeyDer::try_from(self.key.clone()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.clone()).unwrap();
        Arc::new(roots)
    }
}

/// Configurations of both ends with mutual TLS.
pub(crate) struct Configs {
    pub(crate) client: ClientConfig,
    pub(crate) server: ServerConfig,
    pub(crate) client_cert: CertificateDer<'static>,
    pub(crate) server_cert: CertificateDer<'static>,
}

impl Configs {
    pub(crate) fn new(suite: Suite) -> Self {
        Self::with_server_groups(suite, &aws_lc_rs::default_provider().kx_groups)
    }

    /// The server has these key exchanges only; one that the client did not offer first costs a HelloRetryRequest.
    pub(crate) fn with_server_groups(suite: Suite, groups: &[&'static dyn SupportedKxGroup]) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|one| u16::from(one.suite()) == suite.code());
        let server_provider = Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..provider.clone() });
        let provider = Arc::new(provider);
        let (client, server) = (Identity::new(), Identity::new());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(server.roots(), Arc::clone(&provider)).build();
        let (chain, key) = client.chain();
        let mut client_config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_webpki_verifier(verifier.unwrap())
            .with_client_auth_cert(chain, key)
            .unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(client.roots(), Arc::clone(&provider)).build();
        let (chain, key) = server.chain();
        let mut server_config = ServerConfig::builder_with_provider(server_provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        client_config.alpn_protocols = vec![b"h2".to_vec()];
        server_config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            client: client_config,
            server: server_config,
            client_cert: client.cert,
            server_cert: server.cert,
        }
    }

    pub(crate) fn ours(&self, role: Role) -> Handshaker {
        match role {
            Role::Client => Handshaker::client(&self.client, name()).unwrap(),
            Role::Server => Handshaker::server(&self.server).unwrap(),
        }
    }

    /// rustls as the other end of `ours`.
    pub(crate) fn peer(&self, ours: Role) -> Connection {
        match ours {
            Role::Client => ServerConnection::new(Arc::new(self.server.clone())).unwrap().into(),
            Role::Server => ClientConnection::new(Arc::new(self.client.clone()), name()).unwrap().into(),
        }
    }
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

/// An established session of ours with rustls at the other end.
pub(crate) struct Link {
    pub(crate) session: Session,
    pub(crate) peer: Connection,
    /// What rustls has sent and we have not opened.
    pub(crate) inbox: Vec<u8>,
}

impl Link {
    pub(crate) fn new(configs: &Configs, role: Role) -> Self {
        let (mut ours, mut peer) = (configs.ours(role), configs.peer(role));
        let (mut inbox, mut outbox) = (Vec::new(), Vec::new());
        for _ in 0..16 {
            let progress = ours.step(&mut inbox, &mut outbox).unwrap();
            feed(&mut peer, &outbox).unwrap();
            outbox.clear();
            while peer.wants_write() {
                peer.write_tls(&mut inbox).unwrap();
            }
            if progress == Progress::Done && !peer.is_handshaking() {
                return Self { session: ours.into_session().unwrap(), peer, inbox };
            }
        }
        panic!("no end of the handshake");
    }

    /// Something to put in the place of our end while it is moved.
    pub(crate) fn spare(suite: Suite, role: Role) -> (Sealer, Opener) {
        (sealer(suite), opener(suite, role))
    }

    /// Has rustls read `bytes`, and returns the data that it found.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) -> Vec<u8> {
        feed(&mut self.peer, bytes).unwrap();
        let mut data = Vec::new();
        match self.peer.reader().read_to_end(&mut data) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("{error}"),
            _ => data,
        }
    }

    /// Sends data of ours.
    pub(crate) fn send(&mut self, payload: &[u8]) -> Vec<u8> {
        let record = seal(&mut self.session.sealer, payload);
        self.deliver(&record)
    }

    /// Has rustls send data, at most a record, and whatever else it wants to.
    pub(crate) fn answer(&mut self, payload: &[u8]) {
        self.peer.writer().write_all(payload).unwrap();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut self.inbox).unwrap();
        }
    }

    /// Opens all that has arrived: the data, and everything else.
    pub(crate) fn receive(&mut self) -> (Vec<u8>, Vec<Opened>) {
        let (mut data, mut others) = (Vec::new(), Vec::new());
        while let Some(len) = Opener::record_len(&self.inbox).unwrap() {
            let mut record: Vec<u8> = self.inbox.drain(..len).collect();
            match self.session.opener.open(&mut record).unwrap() {
                Opened::Data(range) => data.extend_from_slice(&record[range]),
                other => others.push(other),
            }
        }
        assert!(self.inbox.is_empty());
        (data, others)
    }
}

/// Has rustls read all of `bytes`.
pub(crate) fn feed(peer: &mut Connection, mut bytes: &[u8]) -> std::result::Result<(), rustls::Error> {
    while !bytes.is_empty() {
        peer.read_tls(&mut bytes).unwrap();
        peer.process_new_packets()?;
    }
    Ok(())
}
