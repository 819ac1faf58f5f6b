//! Root certificates that the control plane's certificate must chain to, followed while they are in use.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Source of the roots.
#[derive(Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read for every connection and while one is open.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The operating system's trust store; not supported.
    System,
}

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not supported.
    #[error("the system's trust store is not supported, set the path of a PEM file")]
    System,
    /// The file cannot be read.
    #[error("root certificate file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no certificate in it, or an invalid one.
    #[error("root certificates of {from}: {reason}")]
    Bad {
        /// The source.
        from: String,
        /// Why.
        reason: String,
    },
}

// === impl RootSource ===

impl RootSource {
    /// Finds a source that can never work.
    pub(super) fn check(&self) -> Result<(), RootError> {
        match self {
            Self::System => Err(RootError::System),
            Self::Pem(text) => self.parse(text).map(|_| ()),
            Self::File(_) => Ok(()),
        }
    }

    /// The current PEM text.
    async fn read(&self) -> Result<String, RootError> {
        match self {
            Self::System => Err(RootError::System),
            Self::Pem(text) => Ok(text.clone()),
            Self::File(path) => {
                let read = tokio::fs::read_to_string(path).await;
                read.map_err(|source| RootError::Read { path: path.clone(), source })
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

/// The last valid roots: a file that is half written or missing for a moment does not end trust.
#[derive(Debug)]
pub(super) struct Roots {
    source: RootSource,
    state: Mutex<RootsState>,
}

#[derive(Debug, Default)]
struct RootsState {
    text: String,
    good: Option<Arc<RootCertStore>>,
    /// The last error that was logged.
    logged: Option<String>,
}

// === impl Roots ===

impl Roots {
    pub(super) fn new(source: RootSource) -> Self {
        Self { source, state: Mutex::default() }
    }

    /// Reads the roots. Returns the same `Arc` while they are unchanged, and while the current content is invalid.
    pub(super) async fn load(&self) -> Result<Arc<RootCertStore>, RootError> {
        let read = self.source.read().await;
        // Nothing panics while this is half changed.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(text), Some(good)) = (&read, &state.good)
            && *text == state.text
        {
            let same = Arc::clone(good);
            state.logged = None;
            return Ok(same);
        }
        let found = read.and_then(|text| self.source.parse(&text).map(|roots| (text, Arc::new(roots))));
        match (found, state.good.clone()) {
            (Ok((text, roots)), _) => {
                *state = RootsState { text, good: Some(Arc::clone(&roots)), logged: None };
                Ok(roots)
            }
            (Err(error), Some(good)) => {
                let message = Some(error.to_string());
                if state.logged != message {
                    tracing::warn!(%error, "root certificates of the control plane cannot be used, the last good ones stay in force");
                    state.logged = message;
                }
                Ok(good)
            }
            (Err(error), None) => Err(error),
        }
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
