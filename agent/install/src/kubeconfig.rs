//! The kubeconfig of the plugin as text. It must not know where its token comes from, nor where it is written.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// How the plugin reaches and verifies the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Base URL.
    pub(crate) server: String,
    /// PEM of the roots; `None`: the server's certificate is not verified.
    pub(crate) roots: Option<Vec<u8>>,
}

/// The whole file.
pub(crate) fn render(cluster: &Cluster, token: &str) -> String {
    let verify = match &cluster.roots {
        Some(pem) => ("certificate-authority-data", json!(STANDARD.encode(pem))),
        None => ("insecure-skip-tls-verify", json!(true)),
    };
    let file = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": cluster.server, verify.0: verify.1}}],
        "users": [{"name": "istio-cni", "user": {"token": token.trim()}}],
        "contexts": [{"name": "istio-cni-context", "context": {"cluster": "local", "user": "istio-cni"}}],
        "current-context": "istio-cni-context",
    });
    let text = yaml_serde::to_string(&file).unwrap_or_default();
    format!("# Written by the installer of the CNI plugin, which replaces it when it changes.\n{text}")
}

/// The base URL of the API server; an IPv6 address gets its brackets.
#[must_use]
pub fn server_url(protocol: &str, host: &str, port: &str) -> String {
    let bare = host.contains(':') && !host.starts_with('[');
    if bare { format!("{protocol}://[{host}]:{port}") } else { format!("{protocol}://{host}:{port}") }
}

/// The name of the service account that a token of Kubernetes is for; `None` when it is none.
pub(crate) fn account_of(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let subject = claims.get("sub")?.as_str()?;
    Some(subject.strip_prefix("system:serviceaccount:")?.split_once(':')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_istio_cnis_names() {
        let cluster = Cluster { server: "https://10.0.0.1:443".to_owned(), roots: Some(b"PEM".to_vec()) };
        let file: Value = yaml_serde::from_str(&render(&cluster, "t0ken\n")).unwrap();
        assert_eq!(file["current-context"], "istio-cni-context");
        assert_eq!(file["clusters"][0]["name"], "local");
        assert_eq!(file["clusters"][0]["cluster"]["server"], "https://10.0.0.1:443");
        assert_eq!(file["clusters"][0]["cluster"]["certificate-authority-data"], "UEVN");
        assert_eq!(file["clusters"][0]["cluster"].get("insecure-skip-tls-verify"), None);
        assert_eq!(file["users"][0]["user"]["token"], "t0ken");
        assert_eq!(file["contexts"][0]["context"], json!({"cluster": "local", "user": "istio-cni"}));
        let open: Value = yaml_serde::from_str(&render(&Cluster { roots: None, ..cluster }, "t")).unwrap();
        assert_eq!(open["clusters"][0]["cluster"]["insecure-skip-tls-verify"], true);
        assert_eq!(open["clusters"][0]["cluster"].get("certificate-authority-data"), None);
    }

    #[test]
    fn urls_have_brackets_around_ipv6_addresses() {
        for (host, want) in [
            ("10.96.0.1", "https://10.96.0.1:443"),
            ("fd00::1", "https://[fd00::1]:443"),
            ("[fd00::1]", "https://[fd00::1]:443"),
            ("api.example", "https://api.example:443"),
        ] {
            assert_eq!(server_url("https", host, "443"), want);
        }
    }

    #[test]
    fn the_account_is_read_from_the_token() {
        let token = |sub: &str| {
            let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
            format!("{}.{}.sig", part(json!({})), part(json!({"sub": sub})))
        };
        assert_eq!(
            account_of(&token("system:serviceaccount:istio-system:istio-cni")).as_deref(),
            Some("istio-cni")
        );
        for other in [token("alice"), "x".to_owned(), "a.b.c".to_owned(), String::new()] {
            assert_eq!(account_of(&other), None, "{other}");
        }
    }
}
