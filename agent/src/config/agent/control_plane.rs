//! Settings of the control plane's clients: where the xDS server and the CA are, how they prove themselves, and which
//! credentials the agent presents. Nothing here opens a connection.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::config::mesh::ProxyConfig;
use crate::config::source::Reader;

/// One server of the control plane: istiod as xDS server, or as CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// `https://host:port`.
    pub address: String,
    /// Roots that its certificate must chain to.
    pub roots: Roots,
    /// Bearer token.
    pub token: Token,
    /// Accepted as its certificate's DNS name besides the host of `address`.
    pub alt_hostname: Option<String>,
    /// Added to every request. Values may be secrets and are never shown.
    pub headers: BTreeMap<String, String>,
}

/// What signs the workloads' certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaChoice {
    /// The mesh's CA.
    Remote(ControlPlane),
    /// This process, with a key that is published in its source: for tests, gives no security.
    Fake,
    /// There is no CA: HBONE is impossible, plaintext is carried.
    None,
}

/// Source of the bearer token. A path to a missing file is never mistaken for the token itself.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token itself; accepted only if it has the form of a JSON Web Token.
    Literal(String),
    /// A file, read for each request: the kubelet rotates it.
    File(PathBuf),
    /// No token is sent.
    None,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Literal(hidden)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::None => f.write_str("None"),
        }
    }
}

/// Source of the roots that the control plane's certificate must chain to. A path to a missing file is never mistaken
/// for PEM text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read for each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

pub(super) fn read_control_planes(
    r: &mut Reader<'_>,
    proxy: &ProxyConfig,
    fake: bool,
    inside: bool,
) -> (Option<ControlPlane>, Option<ControlPlane>) {
    let default = || match (&proxy.discovery_address, inside) {
        (Some(address), _) => address.clone(),
        (None, true) => "istiod.istio-system.svc:15012".to_owned(),
        (None, false) => "localhost:15012".to_owned(),
    };
    let mut plane = |address_key: &str, roots: &str, alt: &str, headers: &str| {
        let address = match r.raw(address_key) {
            Some(address) if address.is_empty() => return None,
            Some(address) => address,
            // With the fake CA there is no control plane unless one is named.
            None if fake => return None,
            None => default(),
        };
        Some(ControlPlane {
            address: with_scheme(&address),
            roots: read_roots(r, roots),
            token: read_token(r),
            alt_hostname: r.text(alt),
            headers: r.prefixed(headers),
        })
    };
    let xds = plane("XDS_ADDRESS", "XDS_ROOT_CA", "ALT_XDS_HOSTNAME", "XDS_HEADER_");
    let ca = plane("CA_ADDRESS", "CA_ROOT_CA", "ALT_CA_HOSTNAME", "CA_HEADER_");
    (xds, ca)
}

pub(super) fn choose_ca(
    r: &mut Reader<'_>,
    remote: Option<ControlPlane>,
    fake: bool,
    inside: bool,
) -> CaChoice {
    let addressed = ["XDS_ADDRESS", "CA_ADDRESS"].into_iter().find(|key| r.text(key).is_some());
    match (remote, fake, addressed, inside) {
        (_, true, Some(key), _) => {
            r.fail(format!(
                "FAKE_CA=true together with {key}: certificates signed by the test key must not be used in a real mesh; \
                 unset one of the two"
            ));
            CaChoice::None
        }
        (_, true, None, true) => {
            r.fail("FAKE_CA=true inside Kubernetes (KUBERNETES_SERVICE_HOST is set): the test key is public, so its certificates \
                 prove nothing; unset FAKE_CA");
            CaChoice::None
        }
        (_, true, None, false) => CaChoice::Fake,
        (Some(remote), ..) => CaChoice::Remote(remote),
        (None, ..) => CaChoice::None,
    }
}

/// `XDS_ROOT_CA`, `CA_ROOT_CA`: PEM text if it contains a PEM header, otherwise a path.
fn read_roots(reader: &mut Reader<'_>, key: &str) -> Roots {
    const DEFAULT: &str = "./var/run/secrets/istio/root-cert.pem";
    match reader.text(key) {
        None => Roots::File(DEFAULT.into()),
        Some(text) if text.contains("-----BEGIN ") => Roots::Pem(text),
        Some(text) if text == "SYSTEM" => {
            reader.fail(format!(
                "{key}=SYSTEM: the operating system's trust store is not supported; set the path of a PEM file"
            ));
            Roots::File(DEFAULT.into())
        }
        Some(path) => Roots::File(path.into()),
    }
}

/// `AUTH_TOKEN`: a path, or a JSON Web Token. When it is unset, the projected service account token is used if there
/// is one.
fn read_token(reader: &Reader<'_>) -> Token {
    const DEFAULT: &str = "./var/run/secrets/tokens/istio-token";
    match reader.text("AUTH_TOKEN") {
        Some(text) if is_jwt(&text) => Token::Literal(text),
        Some(path) => Token::File(path.into()),
        None if std::path::Path::new(DEFAULT).exists() => Token::File(DEFAULT.into()),
        None => Token::None,
    }
}

/// Three parts of base64url, the first of which encodes a JSON object: no path looks like this.
fn is_jwt(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.starts_with("eyJ") && text.split('.').count() == 3 && text.split('.').all(part)
}

/// The address with `https://` in front unless it has a scheme.
fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("https://{address}") }
}
