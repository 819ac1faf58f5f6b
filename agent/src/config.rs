//! Settings of the three roles, read once from the environment (ztunnel's and istio-cni's names, so that the existing
//! charts work), with every bad value reported at once. Nothing below the root reads the environment.

pub mod agent;
pub mod gateway;
pub mod mesh;
pub mod node;
pub mod source;
pub mod trust;

use std::fmt;
use std::path::PathBuf;

use isthmus_rt::log::Format;

use self::source::{ConfigErrors, Reader, Strings};

/// How the process logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON (`LOG_FORMAT`).
    pub format: Format,
    /// The filter (`RUST_LOG`).
    pub filter: String,
}

/// Where a bearer token is read from. A path that is missing is never taken for the token itself.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token itself: only what is a JSON Web Token by its looks.
    Literal(String),
    /// A file, read again for each request.
    File(PathBuf),
    /// No token.
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

/// Where trusted roots of the control plane come from. A path that is missing is never taken for PEM text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read again at each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

/// Reads the log settings, which are needed before everything else.
///
/// # Errors
/// All bad values.
pub fn log(strings: &dyn Strings) -> Result<LogConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let config = read_log(&mut reader);
    reader.finish(config)
}

fn read_log(reader: &mut Reader<'_>) -> LogConfig {
    let filter = reader.text("RUST_LOG").unwrap_or_else(|| "info".to_owned());
    if let Err(error) = isthmus_rt::log::parse(&filter) {
        reader.fail(format!("RUST_LOG: {error}"));
    }
    let format = match reader.text("LOG_FORMAT").as_deref() {
        None | Some("plain") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => {
            reader.fail(format!("LOG_FORMAT={other:?} is neither plain nor json"));
            Format::Text
        }
    };
    LogConfig { format, filter }
}

/// `XDS_ROOT_CA`, `CA_ROOT_CA`: PEM text if it looks like it, else a path.
fn read_roots(reader: &mut Reader<'_>, key: &str) -> Roots {
    const DEFAULT: &str = "./var/run/secrets/istio/root-cert.pem";
    match reader.text(key) {
        None => Roots::File(DEFAULT.into()),
        Some(text) if text.contains("-----BEGIN ") => Roots::Pem(text),
        Some(text) if text == "SYSTEM" => {
            reader.fail(format!(
                "{key}=SYSTEM: the operating system's roots are not supported, give a PEM file"
            ));
            Roots::File(DEFAULT.into())
        }
        Some(path) => Roots::File(path.into()),
    }
}

/// `AUTH_TOKEN`: a path, or a token that can be nothing else; unset means the projected token if there is one.
fn read_token(reader: &Reader<'_>) -> Token {
    const DEFAULT: &str = "./var/run/secrets/tokens/istio-token";
    match reader.text("AUTH_TOKEN") {
        Some(text) if is_jwt(&text) => Token::Literal(text),
        Some(path) => Token::File(path.into()),
        None if std::path::Path::new(DEFAULT).exists() => Token::File(DEFAULT.into()),
        None => Token::None,
    }
}

/// `KUBECONFIG`: a file that can be read; unset means that we are a pod, which Kubernetes has given all it needs.
fn read_kubeconfig(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let Some(path) = reader.text("KUBECONFIG") else {
        if reader.text("KUBERNETES_SERVICE_HOST").is_none() {
            reader.fail(
                "KUBECONFIG is not set and this is no pod (KUBERNETES_SERVICE_HOST is not set either): \
                 the API server cannot be reached",
            );
        }
        return None;
    };
    if let Err(error) = std::fs::File::open(&path) {
        reader.fail(format!("KUBECONFIG={path}: {error}"));
    }
    Some(path.into())
}

/// Three parts of base64url, the first of which is a JSON object: no path looks like this.
fn is_jwt(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.starts_with("eyJ") && text.split('.').count() == 3 && text.split('.').all(part)
}

/// An address of the control plane, with `https://` when it has no scheme.
fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("https://{address}") }
}
