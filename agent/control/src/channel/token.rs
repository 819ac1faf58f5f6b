//! The bearer token by which the control plane authenticates the agent.

use std::fmt;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};

/// Source of the token.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// No token.
    None,
    /// A file, read for each request: the kubelet rotates it.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("token file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a token. Its text is not shown.
    #[error("token of {0}: empty, or contains characters other than visible ASCII")]
    Bad(String),
}

// === impl TokenSource ===

impl TokenSource {
    /// The current value of the `authorization` header.
    pub(super) async fn read(&self) -> Result<Option<MetadataValue<Ascii>>, TokenError> {
        match self {
            Self::None => Ok(None),
            Self::Literal(token) => self.bearer(token).map(Some),
            Self::File(path) => {
                let token = read(path).await?;
                self.bearer(&token).map(Some)
            }
        }
    }

    fn bearer(&self, token: &str) -> Result<MetadataValue<Ascii>, TokenError> {
        let token = token.trim();
        let bad = || TokenError::Bad(format!("{self:?}"));
        if token.is_empty() {
            return Err(bad());
        }
        MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| bad())
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Literal(_) => f.write_str("literal token"),
        }
    }
}

async fn read(path: &Path) -> Result<String, TokenError> {
    tokio::fs::read_to_string(path).await.map_err(|source| TokenError::Read { path: path.to_owned(), source })
}
