//! The part of a kubeconfig that leads from the current context to a server and a token. Reads the file and those it
//! names; opens no connection.

use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;

/// How the API server is reached.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Access {
    /// Base URL.
    pub(crate) server: Url,
    /// PEM of the roots that the server's certificate must lead to.
    pub(crate) ca: Option<Vec<u8>>,
    /// Whether the server's certificate is accepted unverified.
    pub(crate) insecure: bool,
    /// The name to expect in the certificate, when it is not the URL's host.
    pub(crate) server_name: Option<String>,
    /// Bearer token.
    pub(crate) token: Option<String>,
}

/// A base URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether it is `https`.
    pub(crate) tls: bool,
    /// Host without brackets.
    pub(crate) host: String,
    /// Port, the scheme's own when none is given.
    pub(crate) port: u16,
    /// Path without a slash at its end.
    pub(crate) path: String,
}

/// Why a kubeconfig is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadKubeconfig {
    /// A file could not be read.
    #[error("{path}: {error}")]
    Read { path: String, error: std::io::Error },
    /// It is not YAML of this shape.
    #[error("{path}: {error}")]
    Parse { path: String, error: yaml_serde::Error },
    /// An entry that another one names is missing.
    #[error("{path}: no {kind} named {name:?}")]
    Missing { path: String, kind: &'static str, name: String },
    /// A field has a value that cannot be used.
    #[error("{path}: {field} {reason}")]
    Field { path: String, field: &'static str, reason: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    token: Option<String>,
    token_file: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

// === impl Access ===

impl Access {
    /// Follows the current context of the file at `path`.
    ///
    /// # Errors
    /// See [`BadKubeconfig`]; every message begins with the path.
    pub(crate) fn load(path: &Path) -> Result<Self, BadKubeconfig> {
        let shown = path.display().to_string();
        let text = read(path)?;
        let file: File = yaml_serde::from_slice(&text)
            .map_err(|error| BadKubeconfig::Parse { path: shown.clone(), error })?;
        let missing =
            |kind, name: &str| BadKubeconfig::Missing { path: shown.clone(), kind, name: name.to_owned() };
        let context = file
            .contexts
            .iter()
            .find(|context| context.name == file.current_context)
            .ok_or_else(|| missing("context", &file.current_context))?;
        let wanted = &context.context;
        let cluster = file
            .clusters
            .iter()
            .find(|cluster| cluster.name == wanted.cluster)
            .ok_or_else(|| missing("cluster", &wanted.cluster))?;
        let user = match wanted.user.as_str() {
            "" => None,
            name => {
                Some(file.users.iter().find(|user| user.name == name).ok_or_else(|| missing("user", name))?)
            }
        };
        let field = |field, reason| BadKubeconfig::Field { path: shown.clone(), field, reason };
        let cluster = &cluster.cluster;
        Ok(Self {
            server: Url::parse(&cluster.server).map_err(|reason| field("server", reason))?,
            ca: roots(path, cluster).map_err(|error| match error {
                Roots::NotBase64(reason) => field("certificate-authority-data", reason),
                Roots::Read(error) => error,
            })?,
            insecure: cluster.insecure_skip_tls_verify,
            server_name: cluster.tls_server_name.clone(),
            token: user.map(|user| token(path, &user.user)).transpose()?.flatten(),
        })
    }
}

enum Roots {
    NotBase64(String),
    Read(BadKubeconfig),
}

fn roots(config: &Path, cluster: &Cluster) -> Result<Option<Vec<u8>>, Roots> {
    if let Some(data) = &cluster.certificate_authority_data {
        let compact: String = data.split_whitespace().collect();
        return base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map(Some)
            .map_err(|error| Roots::NotBase64(format!("is not base64: {error}")));
    }
    cluster
        .certificate_authority
        .as_ref()
        .map(|file| read(&beside(config, file)))
        .transpose()
        .map_err(Roots::Read)
}

fn token(config: &Path, user: &User) -> Result<Option<String>, BadKubeconfig> {
    if let Some(token) = &user.token {
        return Ok(Some(token.trim().to_owned()));
    }
    let Some(file) = &user.token_file else { return Ok(None) };
    let path = beside(config, file);
    let bytes = read(&path)?;
    let text = String::from_utf8(bytes).map_err(|_| BadKubeconfig::Field {
        path: path.display().to_string(),
        field: "token",
        reason: "is not text".to_owned(),
    })?;
    Ok(Some(text.trim().to_owned()))
}

/// Paths in a kubeconfig are relative to it.
fn beside(config: &Path, file: &str) -> std::path::PathBuf {
    config.parent().map_or_else(|| file.into(), |folder| folder.join(file))
}

fn read(path: &Path) -> Result<Vec<u8>, BadKubeconfig> {
    std::fs::read(path).map_err(|error| BadKubeconfig::Read { path: path.display().to_string(), error })
}

// A derived `Debug` would print the token.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

// === impl Url ===

impl Url {
    /// Takes `http[s]://host[:port][/path]` apart.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err(format!("{text:?} is neither http:// nor https://"));
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, after) =
                    v6.split_once(']').ok_or_else(|| format!("{text:?} has no closing bracket"))?;
                (host, after.strip_prefix(':'))
            }
            None => authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() || host.contains(['@', '?', '#']) {
            return Err(format!("{text:?} names no host"));
        }
        let port = match port {
            None => [80, 443][usize::from(tls)],
            Some(port) => port.parse().map_err(|_| format!("{text:?} has port {port:?}"))?,
        };
        Ok(Self { tls, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
    }

    /// Host and port as the `Host` header wants them.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests;
