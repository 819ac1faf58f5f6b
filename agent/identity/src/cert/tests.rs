use std::time::Duration;

use isthmus_kit::pki::{Ca, Spec};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use rustls::{CertificateError, ClientConnection, Error as TlsError, ServerConnection};

use super::*;
use crate::peer::PeerIdentity;
use crate::provider::mesh_provider;
use crate::verify::{VerifyError, rejection};
use crate::{csr, fake, nameless_peer};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const ELSEWHERE: &str = "spiffe://elsewhere/ns/shop/sa/web";

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A certificate of `who` whose leaf is what `spec` says.
fn certificate(ca: &Ca, who: &str, spec: &Spec) -> Certificate {
    let request = csr::generate(&id(who)).unwrap();
    let leaf = ca.sign(&request.pem, spec).unwrap();
    Certificate::new(id(who), request.key, &[leaf, ca.root_pem()]).unwrap()
}

fn proper(ca: &Ca, who: &str) -> Certificate {
    certificate(ca, who, &Spec { uris: vec![who.to_owned()], ..Spec::default() })
}

/// The verdict of a handshake over memory.
pub(crate) struct Verdict {
    pub(crate) client: Result<ClientConnection, TlsError>,
    pub(crate) server: Result<ServerConnection, TlsError>,
}

pub(crate) fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Verdict {
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
            assert!(!server.is_handshaking() || PeerIdentity::of(&server).is_none(), "proof before the end");
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while client_error.is_none() && !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    assert!(client_error.is_some() || server_error.is_some() || !server.is_handshaking());
    Verdict { client: client_error.map_or(Ok(client), Err), server: server_error.map_or(Ok(server), Err) }
}

pub(crate) fn refusal(error: Option<TlsError>) -> VerifyError {
    let error = error.expect("a refusal");
    rejection(&error).unwrap_or_else(|| panic!("{error} is no refusal of ours")).clone()
}

#[test]
fn both_sides_prove_who_they_are_with_the_meshs_cryptography() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let Verdict { client, server } = handshake(web.client_config(&[id(CART)]), cart.server_config());
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(PeerIdentity::of(&client).unwrap().id(), &id(CART));
    assert_eq!(PeerIdentity::of(&server).unwrap().id(), &id(WEB));
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
    assert!(Arc::ptr_eq(&cart.server_config(), &cart.server_config()), "built once");
    assert!(Arc::ptr_eq(&web.client_config(&[id(CART)]), &web.client_config(&[id(CART)])), "built once");
    assert!(!Arc::ptr_eq(&web.client_config(&[id(CART)]), &web.client_config(&[id(WEB)])));
}

#[test]
fn a_server_that_is_somebody_else_is_refused_and_both_names_are_said() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let verdict = handshake(web.client_config(&[id(WEB), id(ELSEWHERE)]), cart.server_config());
    let error = verdict.client.err();
    let shown = error.as_ref().unwrap().to_string();
    let expected = vec![id(WEB), id(ELSEWHERE)];
    assert_eq!(
        refusal(error),
        VerifyError::UnexpectedIdentity { expected, presented: vec![CART.to_owned()] }
    );
    for name in [CART, WEB, ELSEWHERE] {
        assert!(shown.contains(name), "{shown}");
    }
    assert!(verdict.server.is_err(), "the server learns of it");
}

#[test]
fn an_empty_expectation_fits_nobody() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let verdict = handshake(web.client_config(&[]), cart.server_config());
    assert!(refusal(verdict.client.err()).to_string().contains("expected no identity"));
}

#[test]
fn any_uri_of_the_server_may_be_the_expected_one() {
    let ca = Ca::new("root").unwrap();
    let uris = vec!["https://not.spiffe/".to_owned(), CART.to_owned(), ELSEWHERE.to_owned()];
    let cart = certificate(&ca, CART, &Spec { uris, ..Spec::default() });
    let web = proper(&ca, WEB);
    let verdict = handshake(web.client_config(&[id(ELSEWHERE)]), cart.server_config());
    let client = verdict.client.unwrap();
    assert!(verdict.server.is_ok());
    assert_eq!(PeerIdentity::of(&client).unwrap().id(), &id(CART), "the first SPIFFE one is who it is");
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_under_our_root() {
    let ca = Ca::new("root").unwrap();
    let (foreign, cart) = (proper(&ca, ELSEWHERE), proper(&ca, CART));
    let verdict = handshake(foreign.client_config(&[id(CART)]), cart.server_config());
    let refused = refusal(verdict.server.err());
    let presented = vec![ELSEWHERE.to_owned()];
    assert_eq!(refused, VerifyError::ForeignTrustDomain { expected: "cluster.local".into(), presented });
}

#[test]
fn the_identity_that_policies_see_is_the_one_that_was_checked() {
    let ca = Ca::new("root").unwrap();
    let (cart, two) = (proper(&ca, CART), |first: &str, second: &str| {
        let uris = ["https://not.spiffe/", first, second].map(str::to_owned).to_vec();
        certificate(&ca, WEB, &Spec { uris, ..Spec::default() })
    });
    let ours = handshake(two(WEB, ELSEWHERE).client_config(&[id(CART)]), cart.server_config());
    assert_eq!(PeerIdentity::of(&ours.server.unwrap()).unwrap().id(), &id(WEB));
    let foreign = handshake(two(ELSEWHERE, WEB).client_config(&[id(CART)]), cart.server_config());
    assert!(matches!(refusal(foreign.server.err()), VerifyError::ForeignTrustDomain { .. }));
}

#[test]
fn a_client_without_a_spiffe_identity_is_refused() {
    let ca = Ca::new("root").unwrap();
    let cart = proper(&ca, CART);
    for uris in [vec![], vec!["spiffe://cluster.local/ns/shop".to_owned()], vec!["https://a/".to_owned()]] {
        let nobody = certificate(&ca, WEB, &Spec { uris: uris.clone(), ..Spec::default() });
        let verdict = handshake(nobody.client_config(&[id(CART)]), cart.server_config());
        let refused = refusal(verdict.server.err());
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
    let mut bare = ClientConfig::builder_with_provider(mesh_provider())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerIdentity::new(
            &"cluster.local".into(),
            Arc::clone(&web.trusted),
            &Trust::default(),
            &[id(CART)],
        )))
        .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN_H2.to_vec()];
    let verdict = handshake(Arc::new(bare), cart.server_config());
    assert_eq!(verdict.server.err(), Some(TlsError::NoCertificatesPresented));
}

#[test]
fn another_root_is_refused_in_both_directions() {
    let (ours, theirs) = (Ca::new("ours").unwrap(), Ca::new("theirs").unwrap());
    let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
    let verdict =
        handshake(proper(&ours, WEB).client_config(&[id(CART)]), proper(&theirs, CART).server_config());
    assert_eq!(verdict.client.err(), Some(unknown.clone()));
    // The client is made to trust the server, so that it is the server who refuses.
    let request = csr::generate(&id(WEB)).unwrap();
    let leaf = ours.sign(&request.pem, &Spec { uris: vec![WEB.to_owned()], ..Spec::default() }).unwrap();
    let client = Certificate::new(id(WEB), request.key, &[leaf, theirs.root_pem()]).unwrap();
    let verdict = handshake(client.client_config(&[id(CART)]), proper(&theirs, CART).server_config());
    assert_eq!(verdict.server.err(), Some(unknown));
}

#[test]
fn the_wrong_usage_or_time_is_refused() {
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
    let verdict = handshake(web.client_config(&[id(CART)]), server.server_config());
    let error = verdict.client.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
        "{error}"
    );

    let client = with(WEB, vec![Usage::ServerAuth], now);
    let verdict = handshake(client.client_config(&[id(CART)]), cart.server_config());
    let error = verdict.server.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
        "{error}"
    );

    let server = with(CART, Spec::default().usages, Duration::from_secs(2 * 60 * 60));
    let verdict = handshake(web.client_config(&[id(CART)]), server.server_config());
    let error = verdict.client.unwrap_err();
    assert!(
        matches!(error, TlsError::InvalidCertificate(CertificateError::ExpiredContext { .. })),
        "{error}"
    );
}

#[test]
fn a_client_may_offer_no_protocol_but_not_only_another_one() {
    let ca = Ca::new("root").unwrap();
    let (web, cart) = (proper(&ca, WEB), proper(&ca, CART));
    let mut silent = ClientConfig::clone(&web.client_config(&[id(CART)]));
    silent.alpn_protocols = Vec::new();
    let verdict = handshake(Arc::new(silent.clone()), cart.server_config());
    assert!(verdict.server.is_ok() && verdict.client.is_ok());
    silent.alpn_protocols = vec![b"http/1.1".to_vec()];
    let verdict = handshake(Arc::new(silent), cart.server_config());
    assert_eq!(verdict.server.err(), Some(TlsError::NoApplicationProtocol));
}

#[test]
fn what_the_dump_shows_is_what_the_certificate_says() {
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
fn the_serial_number_is_decimal() {
    // The public test root's, as openssl prints it.
    let request = csr::generate(&id(CART)).unwrap();
    let ca = Ca::new("root").unwrap();
    let leaf = ca.sign(&request.pem, &Spec::default()).unwrap();
    let certificate =
        Certificate::new(id(CART), request.key, &[leaf, fake::test_root_pem().to_owned()]).unwrap();
    assert_eq!(certificate.roots()[0].serial_number, "20674617189692161");
}

#[test]
fn a_chain_that_is_none_is_refused_by_its_element() {
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
    assert_eq!(make(&[&"what".to_owned(), &root]).unwrap_err(), CertError::Empty(0));
    assert_eq!(make(&[&leaf, &String::new()]).unwrap_err(), CertError::Empty(1));
    assert!(matches!(make(&[&leaf, &broken, &root]).unwrap_err(), CertError::Unreadable { element: 1, .. }));
    assert!(matches!(make(&[&leaf, &broken]).unwrap_err(), CertError::Unreadable { element: 1, .. }));
    // The leaf is somebody else's.
    let other = csr::generate(&id(CART)).unwrap().key;
    let error = Certificate::new(id(CART), other, &[leaf.clone(), root.clone()]).unwrap_err();
    assert!(matches!(error, CertError::Key(_)), "{error}");
    let error = make(&[&leaf, &root]).unwrap().check_identity().unwrap_err();
    assert_eq!(error, CertError::WrongIdentity { asked: id(CART), shown: vec![WEB.to_owned()] });
    assert!(matches!(
        Certificate::from_pem(id(CART), "no key", &[leaf, root]).unwrap_err(),
        CertError::Key(_)
    ));
}
