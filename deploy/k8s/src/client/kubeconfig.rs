//! The part of a kubeconfig file that the playground writes and reads: one current context with a server, a CA and a
//! bearer token.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::Value;

use super::Error;
use crate::manifest::object;

/// How to reach an API server.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// Roots that the server's certificate must come from, as PEM.
    pub ca_pem: String,
    /// The name that the server's certificate must carry, when it is not the host of `server`.
    pub tls_server_name: Option<String>,
    /// Who we are.
    pub token: Token,
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// The token itself.
    Fixed(String),
    /// A file that is read for every request, since projected tokens are renewed in place.
    File(PathBuf),
}

// === impl Kubeconfig ===

impl Kubeconfig {
    /// Reads a kubeconfig file.
    ///
    /// # Errors
    /// When it cannot be read or lacks something, with the file's name.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Kubeconfig(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text, path.parent().unwrap_or_else(|| Path::new("."))).map_err(bad)
    }

    /// `folder` is where relative paths start.
    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let config: Value = yaml_serde::from_str(text).map_err(|error| error.to_string())?;
        let current = object::text(&config, "/current-context");
        let context = named(&config, "contexts", current, "context")?;
        let cluster = named(&config, "clusters", object::text(context, "/cluster"), "cluster")?;
        let user = named(&config, "users", object::text(context, "/user"), "user")?;
        let server = object::text(cluster, "/server");
        if server.is_empty() {
            return Err("the cluster has no server".to_owned());
        }
        let token = match (object::text(user, "/token"), object::text(user, "/tokenFile")) {
            ("", "") => return Err("the user has neither token nor tokenFile".to_owned()),
            (token, "") => Token::Fixed(token.to_owned()),
            (_, file) => Token::File(folder.join(file)),
        };
        let name = object::text(cluster, "/tls-server-name");
        Ok(Self {
            server: server.to_owned(),
            ca_pem: ca(cluster, folder)?,
            tls_server_name: (!name.is_empty()).then(|| name.to_owned()),
            token,
        })
    }
}

/// The entry `name` of a list of `{name, <key>: …}`.
fn named<'a>(config: &'a Value, list: &str, name: &str, key: &str) -> Result<&'a Value, String> {
    let entries = config.get(list).and_then(Value::as_array).into_iter().flatten();
    let found = entries.into_iter().find(|entry| object::text(entry, "/name") == name);
    found.and_then(|entry| entry.get(key)).ok_or_else(|| format!("{list} has no {name:?} with a {key}"))
}

fn ca(cluster: &Value, folder: &Path) -> Result<String, String> {
    let data = object::text(cluster, "/certificate-authority-data");
    let file = object::text(cluster, "/certificate-authority");
    match (data, file) {
        ("", "") => Err("the cluster has no certificate authority".to_owned()),
        ("", file) => {
            let path = folder.join(file);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        }
        (data, _) => {
            let bad = |error: &dyn std::fmt::Display| format!("certificate-authority-data: {error}");
            let pem = base64::engine::general_purpose::STANDARD.decode(data).map_err(|error| bad(&error))?;
            String::from_utf8(pem).map_err(|error| bad(&error))
        }
    }
}

// === impl Token ===

impl Token {
    /// The token's text as it is now.
    pub(super) async fn current(&self) -> Result<String, Error> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::File(path) => tokio::fs::read_to_string(path)
                .await
                .map(|text| text.trim().to_owned())
                .map_err(|error| Error::Token(format!("{}: {error}", path.display()))),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_is_read() {
        let text = "current-context: b\n\
            contexts: [{name: a, context: {cluster: x, user: x}}, {name: b, context: {cluster: c, user: u}}]\n\
            clusters:\n- name: c\n  cluster: {server: 'https://10.0.0.1:6443', tls-server-name: api, \
            certificate-authority-data: UEVN}\nusers: [{name: u, user: {tokenFile: token}}]";
        let config = Kubeconfig::parse(text, Path::new("/etc/mesh")).unwrap();
        assert_eq!((config.server.as_str(), config.ca_pem.as_str()), ("https://10.0.0.1:6443", "PEM"));
        assert_eq!(config.tls_server_name.as_deref(), Some("api"));
        assert!(matches!(config.token, Token::File(path) if path == Path::new("/etc/mesh/token")));
        assert!(!format!("{:?}", Token::Fixed("secret".to_owned())).contains("secret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let parse = |text: &str| Kubeconfig::parse(text, Path::new(".")).unwrap_err();
        assert!(parse("current-context: a\ncontexts: []").contains("contexts has no \"a\""));
        let text = "current-context: a\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n\
            clusters: [{name: c, cluster: {server: 'https://x'}}]\nusers: [{name: u, user: {}}]";
        assert!(parse(text).contains("neither token nor tokenFile"));
    }
}
