//! The roots that the control plane's certificate must chain to.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Where the roots come from.
#[derive(Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read again for every connection and while one is open.
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

    /// The text as it is now.
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

/// Roots as they were last good: a file that is half written, or gone for a moment, takes nobody's trust away.
#[derive(Debug)]
pub(super) struct Roots {
    source: RootSource,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    text: String,
    good: Option<Arc<RootCertStore>>,
    /// What was last said to be wrong.
    complaint: Option<String>,
}

// === impl Roots ===

impl Roots {
    pub(super) fn new(source: RootSource) -> Self {
        Self { source, held: Mutex::default() }
    }

    /// Reads them anew. The same value is answered for as long as they are the same, and for as long as what is there
    /// now is none.
    pub(super) async fn load(&self) -> Result<Arc<RootCertStore>, RootError> {
        let read = self.source.read().await;
        // Nothing panics while this is half changed.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(text), Some(good)) = (&read, &held.good)
            && *text == held.text
        {
            let same = Arc::clone(good);
            held.complaint = None;
            return Ok(same);
        }
        let found = read.and_then(|text| self.source.parse(&text).map(|roots| (text, Arc::new(roots))));
        match (found, held.good.clone()) {
            (Ok((text, roots)), _) => {
                *held = Held { text, good: Some(Arc::clone(&roots)), complaint: None };
                Ok(roots)
            }
            (Err(error), Some(good)) => {
                let complaint = Some(error.to_string());
                if held.complaint != complaint {
                    tracing::warn!(%error, "roots of the control plane cannot be used, the last good ones stay in force");
                    held.complaint = complaint;
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
