use std::time::{Duration, UNIX_EPOCH};

use isthmus_kit::pki::{Ca, Spec};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, CommonState, Error as TlsError, ServerConfig,
    ServerConnection,
};

use super::*;
use crate::provider::{ALPN_H2, VERSIONS, mesh_provider, nameless_peer};
use crate::tls::MeshTls;
use crate::verify::{PeerVerifier, VerifyError, rejection};
use crate::{csr, fake};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const ELSEWHERE: &str = "spiffe://elsewhere/ns/shop/sa/web";

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A certificate for `who` with the leaf that `spec` describes.
fn certificate(ca: &Ca, who: &str, spec: &Spec) -> Certificate {
    let request = csr::generate(&id(who)).unwrap();
    let leaf = ca.sign(&request.pem, spec).unwrap();
    Certificate::new(id(who), request.key, &[leaf, ca.root_pem()]).unwrap()
}

pub(crate) fn proper(ca: &Ca, who: &str) -> Certificate {
    certificate(ca, who, &Spec { uris: vec![who.to_owned()], ..Spec::default() })
}

/// The results of both sides of a handshake in memory.
pub(crate) struct Handshake {
    pub(crate) client: Result<ClientConnection, TlsError>,
    pub(crate) server: Result<ServerConnection, TlsError>,
}

/// One side's configuration: ours, or one that a test made itself.
pub(crate) trait Side<C> {
    fn rustls_config(&self) -> Arc<C>;
    fn has_proof(&self, _: &CommonState) -> bool {
        false
    }
}

impl<C> Side<C> for Arc<C> {
    fn rustls_config(&self) -> Self {
        Self::clone(self)
    }
}

impl<C> Side<C> for MeshTls<C> {
    fn rustls_config(&self) -> Arc<C> {
        self.config()
    }

    fn has_proof(&self, session: &CommonState) -> bool {
        self.peer(session).is_some()
    }
}

pub(crate) fn handshake(
    our_client: &impl Side<ClientConfig>,
    our_server: &impl Side<ServerConfig>,
) -> Handshake {
    let (client, server) = (our_client.rustls_config(), our_server.rustls_config());
    let mut client = ClientConnection::new(client, nameless_peer()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while server_error.is_none() && !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server_error = server.process_new_packets().err();
            assert!(!server.is_handshaking() || !our_server.has_proof(&server), "proof during the handshake");
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while client_error.is_none() && !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client_error = client.process_new_packets().err();
            assert!(!client.is_handshaking() || !our_client.has_proof(&client), "proof during the handshake");
        }
    }
    assert!(client_error.is_some() || server_error.is_some() || !server.is_handshaking());
    Handshake { client: client_error.map_or(Ok(client), Err), server: server_error.map_or(Ok(server), Err) }
}

pub(crate) fn refusal(error: Option<TlsError>) -> VerifyError {
    let error = error.expect("a refusal");
    rejection(&error).unwrap_or_else(|| panic!("{error} is no refusal of ours")).clone()
}

#[test]
fn both_sides_prove_their_identity_with_mesh_cryptography() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let (client_tls, server_tls) = (web.client_tls(&[id(CART)]), cart.server_tls());
    let Handshake { client, server } = handshake(&client_tls, &server_tls);
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client_tls.peer(&client).unwrap().id(), &id(CART));
    assert_eq!(server_tls.peer(&server).unwrap().id(), &id(WEB));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(
        client.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
    );
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(server.server_name(), None, "no SNI");
    assert_eq!(client.tls13_tickets_received(), 0, "nothing to resume with");
}

#[test]
fn server_with_another_identity_is_refused_and_the_error_names_both() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let result = handshake(&web.client_tls(&[id(WEB), id(ELSEWHERE)]), &cart.server_tls());
    let error = result.client.err();
    let shown = error.as_ref().unwrap().to_string();
    let expected = vec![id(WEB), id(ELSEWHERE)];
    assert_eq!(
        refusal(error),
        VerifyError::UnexpectedIdentity { expected, presented: vec![CART.to_owned()] }
    );
    for name in [CART, WEB, ELSEWHERE] {
        assert!(shown.contains(name), "{shown}");
    }
    assert!(result.server.is_err(), "the server learns of it");
}

#[test]
fn client_without_expected_identities_refuses_every_server() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let result = handshake(&web.client_tls(&[]), &cart.server_tls());
    assert!(refusal(result.client.err()).to_string().contains("expected no identity"));
}

#[test]
fn any_uri_of_the_server_may_be_the_expected_one() {
    let ca = Ca::new("root").unwrap();
    let uris = vec!["https://not.spiffe/".to_owned(), CART.to_owned(), ELSEWHERE.to_owned()];
    let cart = certificate(&ca, CART, &Spec { uris, ..Spec::default() });
    let web = proper(&ca, WEB);
    let client_tls = web.client_tls(&[id(ELSEWHERE)]);
    let result = handshake(&client_tls, &cart.server_tls());
    let client = result.client.unwrap();
    assert!(result.server.is_ok());
    assert_eq!(client_tls.peer(&client).unwrap().id(), &id(CART), "the first SPIFFE URI is the identity");
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_under_our_root() {
    let ca = Ca::new("root").unwrap();
    let (foreign, cart) = (proper(&ca, ELSEWHERE), proper(&ca, CART));
    let result = handshake(&foreign.client_tls(&[id(CART)]), &cart.server_tls());
    let refused = refusal(result.server.err());
    let presented = vec![ELSEWHERE.to_owned()];
    assert_eq!(refused, VerifyError::ForeignTrustDomain { expected: "cluster.local".into(), presented });
}

#[test]
fn first_identity_of_a_client_is_the_one_checked_and_reported() {
    let ca = Ca::new("root").unwrap();
    let (cart, two) = (proper(&ca, CART), |first: &str, second: &str| {
        let uris = ["https://not.spiffe/", first, second].map(str::to_owned).to_vec();
        certificate(&ca, WEB, &Spec { uris, ..Spec::default() })
    });
    let server_tls = cart.server_tls();
    let ours = handshake(&two(WEB, ELSEWHERE).client_tls(&[id(CART)]), &server_tls);
    assert_eq!(server_tls.peer(&ours.server.unwrap()).unwrap().id(), &id(WEB));
    let foreign = handshake(&two(ELSEWHERE, WEB).client_tls(&[id(CART)]), &cart.server_tls());
    assert!(matches!(refusal(foreign.server.err()), VerifyError::ForeignTrustDomain { .. }));
}

#[test]
fn a_client_without_a_spiffe_identity_is_refused() {
    let ca = Ca::new("root").unwrap();
    let cart = proper(&ca, CART);
    for uris in [vec![], vec!["spiffe://cluster.local/ns/shop".to_owned()], vec!["https://a/".to_owned()]] {
        let client = certificate(&ca, WEB, &Spec { uris: uris.clone(), ..Spec::default() });
        let result = handshake(&client.client_tls(&[id(CART)]), &cart.server_tls());
        let refused = refusal(result.server.err());
        assert_eq!(
            refused,
            VerifyError::ForeignTrustDomain { expected: "cluster.local".into(), presented: uris }
        );
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let verifier = PeerVerifier::new(
        &"cluster.local".into(),
        Arc::new(web.trusted().clone()),
        &Trust::default(),
        Arc::default(),
    );
    let mut bare = ClientConfig::builder_with_provider(mesh_provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier.for_servers(&[id(CART)])))
        .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN_H2.to_vec()];
    let result = handshake(&Arc::new(bare), &cart.server_tls());
    assert_eq!(result.server.err(), Some(TlsError::NoCertificatesPresented));
}

#[test]
fn unknown_root_is_refused_in_both_directions() {
    let (ours, theirs) = (Ca::new("ours").unwrap(), Ca::new("theirs").unwrap());
    let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
    let result = handshake(&proper(&ours, WEB).client_tls(&[id(CART)]), &proper(&theirs, CART).server_tls());
    assert_eq!(result.client.err(), Some(unknown.clone()));
    // This client trusts the server's root, so that only the server can refuse.
    let request = csr::generate(&id(WEB)).unwrap();
    let leaf = ours.sign(&request.pem, &Spec { uris: vec![WEB.to_owned()], ..Spec::default() }).unwrap();
    let client = Certificate::new(id(WEB), request.key, &[leaf, theirs.root_pem()]).unwrap();
    let result = handshake(&client.client_tls(&[id(CART)]), &proper(&theirs, CART).server_tls());
    assert_eq!(result.server.err(), Some(unknown));
}

#[test]
fn wrong_key_usage_or_expired_certificate_is_refused() {
    let ca = Ca::new("root").unwrap();
    let with = |who: &str, usages: Vec<Usage>, age: Duration| {
        let mut spec = Spec { uris: vec![who.to_owned()], usages, ..Spec::default() };
        spec.not_before -= age;
        spec.not_after -= age;
        certificate(&ca, who, &spec)
    };
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let now = Duration::ZERO;

    let server = with(CART, vec![Usage::ClientAuth], now);
    let result = handshake(&web.client_tls(&[id(CART)]), &server.server_tls());
    let error = result.client.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
        "{error}"
    );

    let client = with(WEB, vec![Usage::ServerAuth], now);
    let result = handshake(&client.client_tls(&[id(CART)]), &cart.server_tls());
    let error = result.server.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
        "{error}"
    );

    let server = with(CART, Spec::default().usages, Duration::from_secs(2 * 60 * 60));
    let result = handshake(&web.client_tls(&[id(CART)]), &server.server_tls());
    let error = result.client.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::ExpiredContext { .. })),
        "{error}"
    );
}

#[test]
fn client_without_alpn_is_accepted_and_one_without_h2_refused() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let mut silent = ClientConfig::clone(&web.client_tls(&[id(CART)]).config());
    silent.alpn_protocols = Vec::new();
    let result = handshake(&Arc::new(silent.clone()), &cart.server_tls());
    assert!(result.server.is_ok() && result.client.is_ok());
    silent.alpn_protocols = vec![b"http/1.1".to_vec()];
    let result = handshake(&Arc::new(silent), &cart.server_tls());
    assert_eq!(result.server.err(), Some(TlsError::NoApplicationProtocol));
}

#[test]
fn summaries_show_what_the_certificates_contain() {
    let ca = Ca::new("root").unwrap();
    let request = csr::generate(&id(CART)).unwrap();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let spec = Spec {
        uris: vec![CART.to_owned()],
        not_before: at(1_787_479_200),
        not_after: at(1_787_565_600),
        ..Spec::default()
    };
    let leaf = ca.sign(&request.pem, &spec).unwrap();
    let bundle = format!("a comment\n{}{}", ca.root_pem(), Ca::new("second").unwrap().root_pem());
    let certificate = Certificate::new(id(CART), request.key, &[leaf.clone(), bundle]).unwrap();
    let [shown] = certificate.chain() else { panic!("one leaf") };
    assert_eq!(shown.pem.trim(), leaf.replace("\r\n", "\n").trim());
    assert_eq!(shown.valid_from, "2026-08-23T10:00:00Z");
    assert_eq!(shown.expiration_time, "2026-08-24T10:00:00Z");
    assert!(shown.serial_number.bytes().all(|digit| digit.is_ascii_digit()), "{}", shown.serial_number);
    assert_eq!(certificate.roots().len(), 2);
    assert_eq!(certificate.not_before(), at(1_787_479_200));
    assert!(certificate.is_valid_at(at(1_787_565_599)) && !certificate.is_valid_at(at(1_787_565_600)));
    assert!(certificate.check_identity().is_ok());
    assert!(!format!("{certificate:?}").contains("PRIVATE"));
}

#[test]
fn serial_number_is_decimal() {
    // The public test root's, as openssl prints it.
    let request = csr::generate(&id(CART)).unwrap();
    let ca = Ca::new("root").unwrap();
    let leaf = ca.sign(&request.pem, &Spec::default()).unwrap();
    let certificate =
        Certificate::new(id(CART), request.key, &[leaf, fake::test_root_pem().to_owned()]).unwrap();
    assert_eq!(certificate.roots()[0].serial_number, "20674617189692161");
}

#[test]
fn unusable_chain_is_refused_with_the_position_of_the_element() {
    let ca = Ca::new("root").unwrap();
    let request = csr::generate(&id(CART)).unwrap();
    let leaf = ca.sign(&request.pem, &Spec { uris: vec![WEB.to_owned()], ..Spec::default() }).unwrap();
    let root = ca.root_pem();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    let make = |chain: &[&String]| {
        let chain: Vec<String> = chain.iter().map(|text| (*text).clone()).collect();
        Certificate::new(id(CART), request.key.clone_key(), &chain)
    };
    assert_eq!(make(&[]).unwrap_err(), CertError::NoRoots(0));
    assert_eq!(make(&[&leaf]).unwrap_err(), CertError::NoRoots(1));
    assert_eq!(make(&[&"what".to_owned(), &root]).unwrap_err(), ChainError::Empty(0).into());
    assert_eq!(make(&[&leaf, &String::new()]).unwrap_err(), ChainError::Empty(1).into());
    assert!(matches!(
        make(&[&leaf, &broken, &root]).unwrap_err(),
        CertError::Chain(ChainError::Unreadable { element: 1, .. })
    ));
    assert!(matches!(
        make(&[&leaf, &broken]).unwrap_err(),
        CertError::Chain(ChainError::Unreadable { element: 1, .. })
    ));
    // The leaf has another key.
    let other = csr::generate(&id(CART)).unwrap().key;
    let error = Certificate::new(id(CART), other, &[leaf.clone(), root.clone()]).unwrap_err();
    assert!(matches!(error, CertError::Key(_)), "{error}");
    let error = make(&[&leaf, &root]).unwrap().check_identity().unwrap_err();
    assert_eq!(error, CertError::WrongIdentity { asked: id(CART), presented: vec![WEB.to_owned()] });
    assert!(matches!(
        Certificate::from_pem(id(CART), "no key", &[leaf, root]).unwrap_err(),
        CertError::Key(_)
    ));
}

/// A session that other code verified proves nothing, even for a certificate that we would accept.
#[test]
fn session_of_another_verifier_yields_no_identity() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let (client_tls, server_tls) = (web.client_tls(&[id(CART)]), cart.server_tls());
    let mut lenient = ClientConfig::clone(&client_tls.config());
    let foreign = PeerVerifier::new(
        &"cluster.local".into(),
        Arc::new(web.trusted().clone()),
        &Trust::default(),
        Arc::default(),
    );
    lenient.dangerous().set_certificate_verifier(Arc::new(foreign.for_servers(&[id(CART)])));
    let session = handshake(&Arc::new(lenient), &server_tls).client.unwrap();
    assert_eq!(client_tls.peer(&session), None, "its own verifier was not asked");
    // Nor does the TLS of one connection prove anything about another connection.
    let unused = web.client_tls(&[id(CART)]);
    let session = handshake(&client_tls, &cart.server_tls()).client.unwrap();
    assert!(client_tls.peer(&session).is_some());
    assert_eq!(unused.peer(&session), None);
}

#[test]
fn tls_that_is_used_for_a_second_peer_proves_only_the_first() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let server_tls = cart.server_tls();
    let first = handshake(&web.client_tls(&[id(CART)]), &server_tls).server.unwrap();
    let other = proper(&ca, CART);
    let second = handshake(&other.client_tls(&[id(CART)]), &server_tls).server.unwrap();
    assert_eq!(server_tls.peer(&first).unwrap().id(), &id(WEB));
    assert_eq!(server_tls.peer(&second), None);
}
