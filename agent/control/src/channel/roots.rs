//! The roots that the control plane's certificate must chain to.

use std::fmt;
use std::path::PathBuf;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Where the roots come from.
#[derive(Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read again for every connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The system's trust store.
    System,
}

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not supported.
    #[error("the system's trust store is not supported, give a PEM file")]
    System,
    /// The file cannot be read.
    #[error("root certificate file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no certificate in it, or a bad one.
    #[error("root certificates of {from}: {reason}")]
    Bad {
        /// Where they come from.
        from: String,
        /// What is wrong.
        reason: String,
    },
}

// === impl RootSource ===

impl RootSource {
    /// Finds what can never work.
    pub(super) fn check(&self) -> Result<(), RootError> {
        match self {
            Self::System => Err(RootError::System),
            Self::Pem(text) => self.parse(text).map(|_| ()),
            Self::File(_) => Ok(()),
        }
    }

    /// Reads them as they are now.
    pub(super) async fn load(&self) -> Result<RootCertStore, RootError> {
        match self {
            Self::System => Err(RootError::System),
            Self::Pem(text) => self.parse(text),
            Self::File(path) => {
                let read = tokio::fs::read_to_string(path).await;
                self.parse(&read.map_err(|source| RootError::Read { path: path.clone(), source })?)
            }
        }
    }

    fn parse(&self, text: &str) -> Result<RootCertStore, RootError> {
        let bad = |reason: String| RootError::Bad { from: format!("{self:?}"), reason };
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let cert = cert.map_err(|error| bad(error.to_string()))?;
            roots.add(cert).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() { Err(bad("no PEM certificate in it".to_owned())) } else { Ok(roots) }
    }
}

impl fmt::Debug for RootSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Pem(_) => f.write_str("literal PEM"),
            Self::System => f.write_str("system"),
        }
    }
}
