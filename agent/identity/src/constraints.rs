//! Name constraints on URIs (RFC 5280 §4.2.1.10): which hosts a CA may vouch for, which for a SPIFFE ID is its trust domain.
//!
//! webpki verifies everything else of a path and refuses every constraint on URIs, met or not. So this is asked only
//! about a chain in which that was the sole objection. It does not know which of the presented certificates the path
//! consists of, and need not: all of their constraints must hold for all of their names.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};
use x509_parser::prelude::FromDer as _;

/// Whether a chain meets the constraints of its anchor and of its intermediates. Only constraints on URIs are evaluated:
/// one on another form of name is unmet if there could be such a name.
pub(crate) fn are_met(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchor: &TrustAnchor<'_>,
) -> bool {
    let chain = std::iter::once(leaf).chain(intermediates).map(|der| parsed(der));
    let Some(chain) = chain.collect::<Option<Vec<_>>>() else { return false };
    let Some(names) = Names::of(&chain) else { return false };
    let anchor = anchor.name_constraints.as_ref().map(|content| sequence(content));
    let anchors_met = anchor.is_none_or(|der| {
        NameConstraints::from_der(&der).is_ok_and(|(rest, limits)| rest.is_empty() && names.meet(&limits))
    });
    anchors_met && chain.iter().all(|cert| names.meet_those_of(cert))
}

/// The names of all certificates of a chain.
struct Names<'a> {
    /// The hosts of URIs.
    hosts: Vec<&'a str>,
    has_dns: bool,
    has_address: bool,
}

impl<'a> Names<'a> {
    /// `None` when a URI has no host: then no constraint can hold.
    fn of(chain: &'a [X509Certificate<'a>]) -> Option<Self> {
        let mut names = Self { hosts: Vec::new(), has_dns: false, has_address: false };
        for cert in chain {
            let Some(alternative) = cert.subject_alternative_name().ok()? else { continue };
            for name in &alternative.value.general_names {
                match name {
                    GeneralName::URI(uri) => names.hosts.push(host(uri)?),
                    GeneralName::DNSName(_) => names.has_dns = true,
                    GeneralName::IPAddress(_) => names.has_address = true,
                    _ => return None,
                }
            }
        }
        Some(names)
    }

    fn meet_those_of(&self, cert: &X509Certificate<'_>) -> bool {
        match cert.name_constraints() {
            Ok(None) => true,
            Ok(Some(extension)) => self.meet(extension.value),
            Err(_) => false,
        }
    }

    fn meet(&self, limits: &NameConstraints<'_>) -> bool {
        let permitted = limits.permitted_subtrees.as_deref().unwrap_or_default();
        let excluded = limits.excluded_subtrees.as_deref().unwrap_or_default();
        let (Some(permitted), Some(excluded)) = (self.uris(permitted), self.uris(excluded)) else {
            return false;
        };
        self.hosts.iter().all(|host| {
            let within = |limit: &&str| covers(limit, host);
            (permitted.is_empty() || permitted.iter().any(within)) && !excluded.iter().any(within)
        })
    }

    /// The constraints on URIs; `None` when one on another form of name might not be met, or cannot be understood.
    fn uris<'c>(&self, subtrees: &[GeneralSubtree<'c>]) -> Option<Vec<&'c str>> {
        let mut uris = Vec::new();
        for subtree in subtrees {
            match &subtree.base {
                GeneralName::URI(limit) if !matches!(*limit, "" | ".") => uris.push(*limit),
                GeneralName::DNSName(_) if !self.has_dns => {}
                GeneralName::IPAddress(_) if !self.has_address => {}
                _ => return None,
            }
        }
        Some(uris)
    }
}

/// Whether a constraint covers a host: with a dot in front it stands for all names below, otherwise for this one.
fn covers(limit: &str, host: &str) -> bool {
    let (host, limit) = (host.as_bytes(), limit.as_bytes());
    if limit.first() == Some(&b'.') {
        host.len() > limit.len() && host[host.len() - limit.len()..].eq_ignore_ascii_case(limit)
    } else {
        host.eq_ignore_ascii_case(limit)
    }
}

/// The host of a URI; `None` when it has none, or an address instead of a name.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = host.split(':').next()?;
    let is_name = !host.is_empty() && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
    is_name.then_some(host)
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, cert)| cert)
}

/// webpki keeps an anchor's constraints without the sequence around them.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![0x30];
    match (content.len(), u8::try_from(significant.len())) {
        (0..128, _) => der.push(significant.first().copied().unwrap_or(0)),
        (_, Ok(count)) => {
            der.push(0x80 | count);
            der.extend_from_slice(significant);
        }
        // Not reached: a length has at most eight bytes.
        (_, Err(_)) => {}
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use isthmus_kit::pki::{Ca, Limits};
    use rustls_pki_types::UnixTime;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::crl::Revocations;
    use crate::path::{PeerRole, verify};

    const WEB: &str = "spiffe://td/ns/n/sa/web";

    fn accepted(root: &Ca, chain: &str) -> bool {
        let certs: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let root = CertificateDer::from_pem_slice(root.root_pem().as_bytes()).unwrap();
        let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
        let now = UnixTime::now();
        verify(&certs[0], &certs[1..], &anchors, now, PeerRole::Client, &Revocations::None).is_ok()
    }

    #[test]
    fn constraints_on_uris_decide_which_trust_domains_an_intermediate_may_vouch_for() {
        let root = Ca::new("root").unwrap();
        let long: Vec<String> = (0..40).map(|n| format!("domain-{n}.example")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).chain(["td"]).collect();
        for (permitted, excluded, want) in [
            (&[][..], &[][..], true),
            (&["td"], &[], true),
            (&["TD"], &[], true),
            (&["other"], &[], false),
            (&["other", "td"], &[], true),
            (&[".td"], &[], false),
            (&["t"], &[], false),
            (&[""], &[], false),
            (&[], &["other"], true),
            (&[], &["td"], false),
            (&["td"], &["td"], false),
            // What cannot be understood is not met, whatever else there is.
            (&["td", ""], &[], false),
            (&["."], &[], false),
            (&[], &[""], false),
            (&[], &["."], false),
            (&long, &[], true),
        ] {
            let limits = Limits { uris: permitted, excluded_uris: excluded, ..Limits::default() };
            let below = root.limited("below", &limits).unwrap();
            let leaf = below.workload(WEB).unwrap();
            assert_eq!(accepted(&root, &leaf.cert), want, "{permitted:?} {excluded:?}");
        }
        let limits = Limits { uris: &[".example"], ..Limits::default() };
        let below = root.limited("below", &limits).unwrap();
        for (domain, want) in [("a.example", true), ("b.a.example", true), ("example", false)] {
            let leaf = below.workload(&format!("spiffe://{domain}/ns/n/sa/web")).unwrap();
            assert_eq!(accepted(&root, &leaf.cert), want, "{domain}");
        }
    }

    #[test]
    fn a_dot_in_front_stands_for_names_below_only() {
        for (limit, host, want) in [
            ("a.example", "A.Example", true),
            ("a.example", "b.a.example", false),
            (".a.example", "b.A.Example", true),
            (".a.example", "a.example", false),
            (".a.example", ".a.example", false),
            (".a.example", "ba.example", false),
        ] {
            assert_eq!(covers(limit, host), want, "{limit} {host}");
        }
    }

    #[test]
    fn the_host_of_a_uri_is_a_name() {
        for (uri, want) in [
            ("spiffe://td/ns/n/sa/a", Some("td")),
            ("spiffe://td", Some("td")),
            ("x://me@td:443?q#f", Some("td")),
            ("td/ns/n/sa/a", None),
            ("spiffe:///ns/n/sa/a", None),
            ("spiffe://[fd00::1]/ns/n/sa/a", None),
            ("spiffe://192.0.2.1/ns/n/sa/a", None),
        ] {
            assert_eq!(host(uri), want, "{uri}");
        }
    }

    #[test]
    fn constraints_of_every_certificate_above_apply_and_those_of_the_root() {
        fn limits<'a>(uris: &'a [&'a str]) -> Limits<'a> {
            Limits { uris, ..Limits::default() }
        }
        let root = Ca::limited_root("root", &limits(&["td"])).unwrap();
        assert!(accepted(&root, &root.workload(WEB).unwrap().cert));
        assert!(!accepted(&root, &root.workload("spiffe://other/ns/n/sa/web").unwrap().cert));
        let below = root.limited("below", &limits(&["td", "other"])).unwrap();
        assert!(accepted(&root, &below.workload(WEB).unwrap().cert));
        assert!(!accepted(&root, &below.workload("spiffe://other/ns/n/sa/web").unwrap().cert), "the root's");
        // More of them than fit a length of one byte.
        let many: Vec<String> = (0..40).map(|n| format!("domain-{n}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).chain(["td"]).collect();
        let wide = Ca::limited_root("wide", &limits(&many)).unwrap();
        assert!(accepted(&wide, &wide.workload(WEB).unwrap().cert));
        assert!(!accepted(&wide, &wide.workload("spiffe://other/ns/n/sa/web").unwrap().cert));
        let narrow = root.limited("narrow", &limits(&["other"])).unwrap();
        assert!(!accepted(&root, &narrow.under("last").unwrap().workload(WEB).unwrap().cert));
    }

    #[test]
    fn a_constraint_on_another_form_of_name_is_met_without_such_names_only() {
        let root = Ca::new("root").unwrap();
        let uris = Limits { uris: &["td"], ..Limits::default() };
        let names = Limits { names: &["example.com"], ..uris };
        let addresses = Limits { addresses: &[[10, 0, 0, 0, 255, 0, 0, 0]], ..uris };
        for (limits, other_names, want) in [
            (uris, &[][..], true),
            (uris, &["any.example", "192.0.2.1"], true),
            (names, &[], true),
            (names, &["192.0.2.1"], true),
            (names, &["evil.example"], false),
            (addresses, &[], true),
            (addresses, &["evil.example"], true),
            (addresses, &["192.0.2.1"], false),
        ] {
            let below = root.limited("below", &limits).unwrap();
            let spec = isthmus_kit::pki::Spec {
                uris: vec![WEB.to_owned()],
                names: other_names.iter().map(|name| (*name).to_owned()).collect(),
                ..Default::default()
            };
            let leaf = below.leaf(&spec).unwrap();
            assert_eq!(accepted(&root, &leaf.cert), want, "{limits:?} {other_names:?}");
        }
    }

    #[test]
    fn nothing_but_the_constraint_is_forgiven() {
        let root = Ca::new("root").unwrap();
        let limits = Limits { uris: &["td"], ..Limits::default() };
        let below = root.limited("below", &limits).unwrap();
        let leaf = below.workload(WEB).unwrap();
        assert!(!accepted(&Ca::new("root").unwrap(), &leaf.cert), "another root of this name");
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
        let expired =
            isthmus_kit::pki::Spec { uris: vec![WEB.to_owned()], not_after: past, ..Default::default() };
        assert!(!accepted(&root, &below.leaf(&expired).unwrap().cert));
        let forged = Ca::new("root").unwrap().limited("below", &limits).unwrap();
        let mixed = forged.workload(WEB).unwrap().cert;
        let mixed = mixed.replace(&forged.intermediates_pem(), &below.intermediates_pem());
        assert!(!accepted(&root, &mixed), "signed by another intermediate of this name");
    }
}
