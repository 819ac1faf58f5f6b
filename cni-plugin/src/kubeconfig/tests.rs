//! Kubeconfigs as installers write them, and defective ones.

use super::*;

fn config(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n{cluster}\nusers:\n- name: istio-cni\n  \
         user:\n{user}\ncontexts:\n- name: ctx\n  context:\n    cluster: local\n    user: istio-cni\n\
         current-context: ctx\n"
    )
}

fn load(text: &str) -> Result<Access, BadKubeconfig> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), "PEM").unwrap();
    std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, text).unwrap();
    Access::load(&path)
}

#[test]
fn inline_data_and_files_are_equivalent() {
    let inline = load(&config(
        "    server: https://[::1]:6443\n    certificate-authority-data: UEVN",
        "    token: abc",
    ))
    .unwrap();
    assert_eq!(inline.server.authority(), "[::1]:6443");
    assert_eq!(inline.ca.as_deref(), Some(&b"PEM"[..]));
    assert_eq!(inline.token.as_deref(), Some("abc"));

    let files = load(&config(
        "    server: https://10.0.0.1\n    certificate-authority: ca.pem",
        "    tokenFile: token",
    ))
    .unwrap();
    assert_eq!(files.server.port, 443);
    assert_eq!(files.ca, inline.ca);
    assert_eq!(files.token.as_deref(), Some("from-file"));
    assert!(!files.insecure);
}

#[test]
fn an_invalid_kubeconfig_names_its_defect() {
    let good = config("    server: http://x", "    token: abc");
    let cases = [
        ("clusters: 5".to_owned(), "clusters"),
        (good.replace("current-context: ctx", "current-context: other"), "context named \"other\""),
        (good.replace("    cluster: local", "    cluster: gone"), "cluster named \"gone\""),
        (good.replace("    user: istio-cni", "    user: gone"), "user named \"gone\""),
        (good.replace("http://x", "ftp://x"), "server"),
        (
            good.replace("http://x", "http://x\n    certificate-authority-data: '*'"),
            "certificate-authority-data",
        ),
        (good.replace("http://x", "http://x\n    certificate-authority: none.pem"), "none.pem"),
    ];
    for (text, named) in cases {
        let error = load(&text).unwrap_err().to_string();
        assert!(error.contains(named), "{text}\n{error}");
    }
    assert!(
        Access::load(Path::new("/nonexistent/kubeconfig")).unwrap_err().to_string().contains("/nonexistent")
    );
}

#[test]
fn urls_are_split_into_scheme_host_port_and_path() {
    let parse = |text| Url::parse(text).unwrap();
    let whole = parse("https://api.example.com:6443/k8s/clusters/a/");
    assert_eq!((whole.tls, whole.host.as_str(), whole.port), (true, "api.example.com", 6443));
    assert_eq!(whole.path, "/k8s/clusters/a");
    assert_eq!(parse("http://10.0.0.1").port, 80);
    assert_eq!(parse("https://[fd00::1]").authority(), "[fd00::1]:443");
    for bad in ["10.0.0.1:80", "https://", "https://h:port", "https://[::1", "https://user@h/"] {
        assert!(Url::parse(bad).unwrap_err().contains(bad), "{bad}");
    }
}

#[test]
fn the_token_is_not_printed() {
    let access = load(&config("    server: http://x", "    token: sesame")).unwrap();
    assert!(!format!("{access:?}").contains("sesame"));
}
