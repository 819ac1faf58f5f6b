use std::future::poll_fn;

use isthmus_kit::pki::{Ca, Spec};
use isthmus_model::TrustDomain;
use rustls::{CertRevocationListError, CertificateError, Error as TlsError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::cert::Certificate;
use crate::cert::tests::{Handshake, handshake, id, refusal};
use crate::csr;
use crate::evidence::PeerEvidence;
use crate::verify::{VerifyError, is_revocation};

const CART: &str = "spiffe://new/ns/shop/sa/cart";
const WEB: &str = "spiffe://new/ns/shop/sa/web";
const OLD_WEB: &str = "spiffe://old/ns/shop/sa/web";
const OLD_CART: &str = "spiffe://old/ns/shop/sa/cart";
const PARTNER: &str = "spiffe://partner/ns/shop/sa/web";

/// A workload's certificate, with one agent's view of roots and trust.
fn member(ca: &Ca, roots: &[&Ca], who: &str, trust: &Trust) -> Certificate {
    let request = csr::generate(&id(who)).unwrap();
    let spec = Spec { uris: vec![who.to_owned()], ..Spec::default() };
    let leaf = ca.sign(&request.pem, &spec).unwrap() + &ca.intermediates_pem();
    let bundle: String = roots.iter().map(|root| root.root_pem()).collect();
    Certificate::with_trust(id(who), request.key, &[leaf, bundle], trust).unwrap()
}

/// A handshake in which each side expects the identity that the other one was made for.
fn meet(client: &Certificate, server: &Certificate) -> Handshake {
    handshake(&client.client_tls(&[server.identity().clone()]), &server.server_tls())
}

fn both_accept(result: &Handshake) -> bool {
    result.client.is_ok() && result.server.is_ok()
}

fn aliased(aliases: &[&str], roots: Vec<BoundRoot>) -> Trust {
    let trust = Trust::default();
    let aliases = aliases.iter().map(|alias| TrustDomain::from(*alias));
    trust.set_domains(TrustDomains::new(Some("new".into()), aliases), roots);
    trust
}

fn revocable() -> Trust {
    Trust::new(Options { revocable: true, ..Options::default() })
}

fn lists(texts: &[String]) -> Revocations {
    Revocations::parse(texts.concat().as_bytes()).unwrap()
}

fn leaf(certificate: &Certificate) -> &str {
    &certificate.chain()[0].pem
}

#[test]
fn trust_domain_alias_is_accepted_from_clients_and_servers() {
    let ca = Ca::new("root").unwrap();
    let (plain, trust) = (aliased(&[], vec![]), aliased(&["old"], vec![]));
    let old = member(&ca, &[&ca], OLD_WEB, &trust);
    let server_tls = member(&ca, &[&ca], CART, &trust).server_tls();
    let result = handshake(&old.client_tls(&[id(CART)]), &server_tls);
    assert!(both_accept(&result));
    let seen = server_tls.peer(&result.server.unwrap()).unwrap();
    assert_eq!(seen.id(), &id(OLD_WEB), "reported as presented, not as the alias's canonical name");
    let result = meet(&old, &member(&ca, &[&ca], CART, &plain));
    assert!(matches!(refusal(result.server.err()), VerifyError::ForeignTrustDomain { .. }));
    // The server is expected under the mesh's name and proves the other one.
    let server = member(&ca, &[&ca], OLD_CART, &trust);
    let expecting = |trust: &Trust, who: &str| member(&ca, &[&ca], WEB, trust).client_tls(&[id(who)]);
    assert!(both_accept(&handshake(&expecting(&trust, CART), &server.server_tls())));
    let result = handshake(&expecting(&plain, CART), &server.server_tls());
    assert!(matches!(refusal(result.client.err()), VerifyError::UnexpectedIdentity { .. }));
    let result = handshake(&expecting(&trust, WEB), &server.server_tls());
    assert!(
        matches!(refusal(result.client.err()), VerifyError::UnexpectedIdentity { .. }),
        "another account"
    );
}

#[test]
fn changed_aliases_apply_from_the_next_handshake() {
    let ca = Ca::new("root").unwrap();
    let trust = aliased(&[], vec![]);
    let (old, cart) =
        (member(&ca, &[&ca], OLD_WEB, &aliased(&["old"], vec![])), member(&ca, &[&ca], CART, &trust));
    assert!(meet(&old, &cart).server.is_err());
    let both = TrustDomains::new(Some("new".into()), ["old".into()]);
    trust.set_domains(both.clone(), vec![]);
    assert_eq!(trust.domains(), both);
    assert!(both_accept(&meet(&old, &cart)), "with the configuration that was built before");
    trust.set_domains(TrustDomains::default(), vec![]);
    assert!(meet(&old, &cart).server.is_err());
}

#[test]
fn configured_root_is_authorized_for_its_trust_domains_only() {
    let (mesh, partners) = (Ca::new("mesh").unwrap(), Ca::new("partner").unwrap());
    let roots = BoundRoot::from_pem(&partners.root_pem(), &["partner".into()]).unwrap();
    let trust = aliased(&["partner"], roots);
    let cart = member(&mesh, &[&mesh], CART, &trust);
    // The clients trust both roots, so that only our side can refuse.
    let from = |ca: &Ca, who: &str| member(ca, &[&mesh, &partners], who, &trust);
    assert!(both_accept(&meet(&from(&partners, PARTNER), &cart)));
    let forged = meet(&from(&partners, WEB), &cart);
    let presented = vec![WEB.to_owned()];
    assert_eq!(refusal(forged.server.err()), VerifyError::UnboundRoot { presented });
    // The same when it is dialled.
    let impostor = from(&partners, CART);
    let result = meet(&member(&mesh, &[&mesh], WEB, &trust), &impostor);
    assert!(matches!(refusal(result.client.err()), VerifyError::UnboundRoot { .. }));
    // Nor may it hide an identity of ours behind one of its own.
    let request = csr::generate(&id(WEB)).unwrap();
    let uris = vec![PARTNER.to_owned(), WEB.to_owned()];
    let two = partners.sign(&request.pem, &Spec { uris, ..Spec::default() }).unwrap();
    let two = Certificate::new(id(WEB), request.key, &[two, mesh.root_pem()]).unwrap();
    assert!(matches!(refusal(meet(&two, &cart).server.err()), VerifyError::UnboundRoot { .. }));
}

#[test]
fn mesh_roots_are_not_authorized_for_a_domain_that_a_configured_root_claims() {
    let (mesh, partners) = (Ca::new("mesh").unwrap(), Ca::new("partner").unwrap());
    let claimed = aliased(&[], BoundRoot::from_pem(&partners.root_pem(), &["partner".into()]).unwrap());
    let server = member(&mesh, &[&mesh], PARTNER, &aliased(&["partner"], vec![]));
    let dial = |trust: &Trust| {
        let web = member(&mesh, &[&mesh], WEB, trust);
        handshake(&web.client_tls(&[id(PARTNER)]), &server.server_tls()).client.err()
    };
    assert_eq!(
        dial(&aliased(&[], vec![])),
        None,
        "the control plane expects it and no configured root claims its domain"
    );
    assert!(matches!(refusal(dial(&claimed)), VerifyError::UnboundRoot { .. }));
}

#[test]
fn configured_root_without_domains_is_authorized_for_the_mesh() {
    let (mesh, more) = (Ca::new("mesh").unwrap(), Ca::new("more").unwrap());
    let trust = aliased(&["old"], BoundRoot::from_pem(&more.root_pem(), &[]).unwrap());
    let cart = member(&mesh, &[&mesh], CART, &trust);
    for who in [WEB, OLD_WEB] {
        assert!(both_accept(&meet(&member(&more, &[&mesh], who, &trust), &cart)), "{who}");
    }
    let dialled = member(&more, &[&mesh], PARTNER, &trust);
    let result = meet(&member(&mesh, &[&mesh], WEB, &trust), &dialled);
    assert!(matches!(refusal(result.client.err()), VerifyError::UnboundRoot { .. }));
    assert!(BoundRoot::from_pem("no certificate", &[]).is_err());
}

#[test]
fn mesh_roots_overlap_during_a_rotation_until_the_old_certificates_expire() {
    let (old, new) = (Ca::new("old").unwrap(), Ca::new("new").unwrap());
    let trust = Trust::default();
    let learn = |certificate: &Certificate, expires: SystemTime| {
        trust.learn_roots(certificate.trusted(), expires, SystemTime::now());
    };
    let hour = Duration::from_secs(3600);
    // This agent was signed for before the rotation, and then after it.
    let before = member(&old, &[&old], CART, &trust);
    learn(&before, SystemTime::now() + hour);
    let peers = || {
        let theirs = Trust::default();
        theirs.learn_roots(before.trusted(), SystemTime::now() + hour, SystemTime::now());
        let fresh = member(&new, &[&new], WEB, &theirs);
        theirs.learn_roots(fresh.trusted(), SystemTime::now() + hour, SystemTime::now());
        (member(&old, &[&old], WEB, &theirs), fresh)
    };
    let (early, late) = peers();
    assert!(meet(&late, &before).server.is_err(), "the new root is not known yet");
    let after = member(&new, &[&new], CART, &trust);
    learn(&after, SystemTime::now() + hour);
    for (client, name) in [(&early, "signed before"), (&late, "signed after")] {
        assert!(both_accept(&meet(client, &before)), "{name}, met by the old certificate");
        assert!(both_accept(&meet(client, &after)), "{name}, met by the new certificate");
    }
    // The last certificate that came with the old root has expired.
    let trust = Trust::default();
    trust.learn_roots(before.trusted(), SystemTime::now() - Duration::from_secs(1), SystemTime::now() - hour);
    let after = member(&new, &[&new], CART, &trust);
    trust.learn_roots(after.trusted(), SystemTime::now() + hour, SystemTime::now());
    assert!(both_accept(&meet(&late, &after)));
    let result = meet(&early, &after);
    assert_eq!(result.server.err(), Some(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)));
    assert_eq!(trust.rules().mesh_roots(), 1, "the expired root is dropped");
}

#[test]
fn revoked_leaf_or_intermediate_is_refused_in_both_directions() {
    let root = Ca::new("root").unwrap();
    let below = root.under("below").unwrap();
    let (none, trust) = (Trust::default(), revocable());
    let (web, cart) = (member(&below, &[&root], WEB, &none), member(&below, &[&root], CART, &none));
    let (our_web, our_cart) = (member(&below, &[&root], WEB, &trust), member(&below, &[&root], CART, &trust));
    let revoked = TlsError::InvalidCertificate(CertificateError::Revoked);
    for lists_of in [
        vec![below.crl(&[leaf(&web), leaf(&cart)]).unwrap()],
        vec![below.crl(&[]).unwrap(), root.crl(&[&below.intermediates_pem()]).unwrap()],
    ] {
        trust.set_revocations(lists(&lists_of));
        let result = meet(&web, &our_cart);
        assert_eq!(result.server.err().as_ref(), Some(&revoked), "a client");
        let result = meet(&our_web, &cart);
        assert_eq!(result.client.err().as_ref(), Some(&revoked), "a server");
    }
    assert!(is_revocation(&revoked));
    trust.set_revocations(lists(&[below.crl(&[leaf(&cart)]).unwrap()]));
    assert!(both_accept(&meet(&web, &our_cart)), "another peer is revoked");
    trust.set_revocations(Revocations::None);
    assert!(both_accept(&meet(&our_web, &cart)), "the empty list un-revokes");
}

#[test]
fn new_peers_are_refused_until_a_configured_revocation_list_is_loaded() {
    let ca = Ca::new("root").unwrap();
    let trust = revocable();
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let error = meet(&web, &cart).client.err();
    assert!(is_revocation(error.as_ref().unwrap()));
    assert!(matches!(refusal(error), VerifyError::NoRevocationList(why) if why.contains("not read yet")));
    let plain = member(&ca, &[&ca], WEB, &Trust::default());
    assert!(matches!(refusal(meet(&plain, &cart).server.err()), VerifyError::NoRevocationList(_)));
    trust.set_revocations(Revocations::None);
    assert!(both_accept(&meet(&web, &cart)));
}

#[test]
fn list_with_a_bad_signature_refuses_every_peer() {
    let (ca, forger) = (Ca::new("root").unwrap(), Ca::new("root").unwrap());
    let trust = revocable();
    let (web, cart) = (member(&ca, &[&ca], WEB, &Trust::default()), member(&ca, &[&ca], CART, &trust));
    trust.set_revocations(lists(&[forger.crl(&[]).unwrap()]));
    let bad = TlsError::InvalidCertRevocationList(CertRevocationListError::BadSignature);
    assert_eq!(meet(&web, &cart).server.err(), Some(bad.clone()));
    assert!(is_revocation(&bad));
}

#[test]
fn all_lists_with_one_issuer_name_apply_in_any_order() {
    // A CA that changed its key and kept its name.
    let (old, new) = (Ca::new("root").unwrap(), Ca::new("root").unwrap());
    let trust = revocable();
    let cart = member(&new, &[&old, &new], CART, &trust);
    let (early, late) =
        (member(&old, &[&new], WEB, &Trust::default()), member(&new, &[&new], WEB, &Trust::default()));
    let (none_old, none_new) = (old.crl(&[]).unwrap(), new.crl(&[]).unwrap());
    for order in [[&none_old, &none_new], [&none_new, &none_old]] {
        trust.set_revocations(lists(&order.map(Clone::clone)));
        for (name, web) in [("early", &early), ("late", &late)] {
            assert_eq!(meet(web, &cart).server.err(), None, "{name}");
        }
    }
    let revoked = Some(TlsError::InvalidCertificate(CertificateError::Revoked));
    let names_late = new.crl(&[leaf(&late)]).unwrap();
    // Beside the other key's list, and beside an older one of its own.
    for order in [[&none_old, &names_late], [&names_late, &none_old], [&none_new, &names_late]] {
        trust.set_revocations(lists(&order.map(Clone::clone)));
        assert_eq!(meet(&late, &cart).server.err(), revoked);
    }
    trust.set_revocations(lists(&[none_old, names_late]));
    assert!(both_accept(&meet(&early, &cart)));
    // Neither list is of the key that signed this one.
    let stranger = Ca::new("root").unwrap();
    trust.set_revocations(lists(&[stranger.crl(&[]).unwrap(), new.crl(&[]).unwrap()]));
    let bad = TlsError::InvalidCertRevocationList(CertRevocationListError::BadSignature);
    assert_eq!(meet(&early, &cart).server.err(), Some(bad));
}

#[tokio::test]
async fn revocation_closes_only_connections_of_revoked_peers() {
    let ca = Ca::new("root").unwrap();
    let trust = revocable();
    trust.set_revocations(Revocations::None);
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let (client_tls, server_tls) = (web.client_tls(&[id(CART)]), cart.server_tls());
    let Handshake { client, server } = handshake(&client_tls, &server_tls);
    let (client, server) = (client.unwrap(), server.unwrap());
    // Each side watches the other one.
    let (of_web, of_cart) = (server_tls.watch_revocation(&server), client_tls.watch_revocation(&client));
    assert!(of_web.is_registered() && of_cart.is_registered());
    assert_eq!(trust.set_revocations(lists(&[ca.crl(&[leaf(&cart)]).unwrap()])), 1);
    assert!(of_cart.is_revoked() && !of_web.is_revoked());
    let mut waits = Box::pin(poll_fn(|cx| of_web.poll_revoked(cx)));
    assert!(poll_fn(|cx| std::task::Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
    let revoke = async { trust.set_revocations(lists(&[ca.crl(&[leaf(&cart), leaf(&web)]).unwrap()])) };
    let ((), revoked) = tokio::join!(waits, revoke);
    assert_eq!(revoked, 1, "the other peer was revoked before");
    // A peer that registers after the list was replaced is revoked at once.
    assert!(server_tls.watch_revocation(&server).is_revoked());
    drop((of_web, of_cart));
    assert_eq!(trust.0.registry.len(), 0);
}

#[test]
fn list_with_a_bad_signature_closes_no_open_connection() {
    let (ca, forger) = (Ca::new("root").unwrap(), Ca::new("other").unwrap());
    let trust = revocable();
    trust.set_revocations(Revocations::None);
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let server_tls = cart.server_tls();
    let server = handshake(&web.client_tls(&[id(CART)]), &server_tls).server.unwrap();
    let of_web = server_tls.watch_revocation(&server);
    assert_eq!(trust.set_revocations(lists(&[forger.crl(&[leaf(&web)]).unwrap()])), 0);
    assert!(!of_web.is_revoked());
}

/// Serial numbers are unique per key: a CA that changed its key and kept its name may use one again.
#[test]
fn a_serial_number_on_the_list_of_another_key_closes_no_connection() {
    let (old, new) = (Ca::new("root").unwrap(), Ca::new("root").unwrap());
    let trust = revocable();
    trust.set_revocations(Revocations::None);
    let (web, cart) = (member(&new, &[&new], WEB, &trust), member(&new, &[&new], CART, &trust));
    let server_tls = cart.server_tls();
    let server = handshake(&web.client_tls(&[id(CART)]), &server_tls).server.unwrap();
    let of_web = server_tls.watch_revocation(&server);
    let listed = [old.crl(&[leaf(&web)]).unwrap(), new.crl(&[]).unwrap()];
    assert_eq!(trust.set_revocations(lists(&listed)), 0);
    assert!(!of_web.is_revoked());
    let listed = [old.crl(&[]).unwrap(), new.crl(&[leaf(&web)]).unwrap()];
    assert_eq!(trust.set_revocations(lists(&listed)), 1);
    assert!(of_web.is_revoked());
}

/// As another process would have it: what a peer had presented, and nothing else of its session.
fn evidence_of(web: &Certificate, cart: &Certificate) -> (PeerEvidence, PeerEvidence) {
    let (client_tls, server_tls) = (web.client_tls(&[id(CART)]), cart.server_tls());
    let Handshake { client, server } = handshake(&client_tls, &server_tls);
    let copy = |evidence: PeerEvidence, has_dialled| {
        let chain = evidence.chain().map(<[u8]>::to_vec).collect();
        PeerEvidence::handed_over(chain, has_dialled, evidence.verified_at())
    };
    let of_web = copy(server_tls.evidence(&server.unwrap()).unwrap(), true);
    (of_web, copy(client_tls.evidence(&client.unwrap()).unwrap(), false))
}

#[test]
fn the_peer_of_a_connection_that_is_handed_over_is_proved_again() {
    let ca = Ca::new("root").unwrap();
    let trust = Trust::default();
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let (of_web, of_cart) = evidence_of(&web, &cart);
    // The successor has certificates and trust rules of its own.
    let (web, cart) =
        (member(&ca, &[&ca], WEB, &aliased(&[], vec![])), member(&ca, &[&ca], CART, &revocable()));
    let (peer, _) = web.readmit(&of_cart, &[id(CART)]).unwrap();
    assert_eq!(peer.id(), &id(CART));
    let other = web.readmit(&of_cart, &[id(WEB)]).unwrap_err();
    assert!(matches!(refusal(Some(other)), VerifyError::UnexpectedIdentity { .. }));
    // A list is required and not read yet.
    assert!(is_revocation(&cart.readmit(&of_web, &[]).unwrap_err()));
    let stranger = Ca::new("other").unwrap();
    let elsewhere = member(&stranger, &[&stranger], CART, &Trust::default());
    assert!(elsewhere.readmit(&of_web, &[]).is_err(), "another root");
    let none = PeerEvidence::handed_over(Vec::new(), true, of_web.verified_at());
    assert!(web.readmit(&none, &[]).is_err());
}

#[test]
fn a_peer_that_was_revoked_is_not_taken_over_and_one_that_is_taken_over_can_be_revoked() {
    let ca = Ca::new("root").unwrap();
    let trust = revocable();
    trust.set_revocations(Revocations::None);
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let (of_web, _) = evidence_of(&web, &cart);
    let (_, watch) = cart.readmit(&of_web, &[]).unwrap();
    assert!(watch.is_registered() && !watch.is_revoked());
    trust.set_revocations(lists(&[ca.crl(&[leaf(&web)]).unwrap()]));
    assert!(watch.is_revoked());
    assert!(is_revocation(&cart.readmit(&of_web, &[]).unwrap_err()));
}

#[test]
fn peers_are_not_registered_without_a_configured_revocation_list() {
    let ca = Ca::new("root").unwrap();
    let trust = Trust::default();
    let (web, cart) = (member(&ca, &[&ca], WEB, &trust), member(&ca, &[&ca], CART, &trust));
    let server_tls = cart.server_tls();
    let server = handshake(&web.client_tls(&[id(CART)]), &server_tls).server.unwrap();
    assert!(!server_tls.watch_revocation(&server).is_registered());
}

#[test]
fn post_quantum_policy_refuses_classical_peers_on_both_sides() {
    let ca = Ca::new("root").unwrap();
    let strict = Trust::new(Options { key_exchange: KeyExchange::PostQuantum, ..Options::default() });
    let (web, cart) = (member(&ca, &[&ca], WEB, &strict), member(&ca, &[&ca], CART, &strict));
    let Handshake { client, .. } = meet(&web, &cart);
    let group = client.unwrap().negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    // The default policy has the group, too.
    assert!(both_accept(&meet(&member(&ca, &[&ca], WEB, &Trust::default()), &cart)));
    let peer = ca.workload(WEB).unwrap();
    let classical = |alpn: &[&str]| {
        let mut config = rustls::ClientConfig::clone(&peer.client_config(alpn).unwrap());
        let mut provider = rustls::crypto::CryptoProvider::clone(config.crypto_provider());
        provider.kx_groups.retain(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
        let roots = isthmus_kit::pki::roots(&peer.root).unwrap();
        config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(peer.cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(peer.key.as_bytes()).unwrap(),
            )
            .unwrap();
        Arc::new(config)
    };
    let result = handshake(&classical(&["h2"]), &cart.server_tls());
    let error = result.server.unwrap_err().to_string();
    assert!(error.contains("NoKxGroupsInCommon"), "{error}");
    // A server that has only classical groups finds none in our hello.
    let mut provider = rustls::crypto::CryptoProvider::clone(&KeyExchange::Preferred.provider());
    provider.kx_groups.retain(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
    let leaf = ca.workload(CART).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let result = handshake(&web.client_tls(&[id(CART)]), &Arc::new(server));
    assert!(result.client.is_err() && result.server.is_err());
}
