use isthmus_kit::pki::Ca;
use isthmus_rt::task::Tasks;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;

use super::*;

fn server(address: &str) -> Server {
    Server {
        address: address.to_owned(),
        roots: RootSource::File("/nowhere/root.pem".into()),
        token: TokenSource::None,
        cluster_id: "c1".into(),
        headers: Vec::new(),
        alt_hostname: None,
        key_exchange: KeyExchange::default(),
    }
}

#[test]
fn invalid_settings_are_reported_by_check() {
    assert!(
        server("https://istiod.istio-system.svc:15012").check().is_ok(),
        "a missing file may appear later"
    );
    assert!(server("http://127.0.0.1:1").check().is_ok());
    for (address, reason) in [
        ("istiod:15012", "must start with https:// or http://"),
        ("grpc://istiod:15012", "must start with https:// or http://"),
        ("https://", "empty"),
        ("https://a b", "invalid"),
        ("", "empty"),
    ] {
        let error = server(address).check().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&format!("{address:?}")), "{address:?}: {error}");
    }
    let with = |change: fn(&mut Server)| {
        let mut server = server("https://istiod:15012");
        change(&mut server);
        server.check().unwrap_err().to_string()
    };
    assert!(
        with(|server| server.roots = RootSource::System).contains("system's trust store is not supported")
    );
    assert!(with(|server| server.roots = RootSource::Pem("what".to_owned())).contains("literal PEM: no PEM"));
    assert!(with(|server| server.alt_hostname = Some("a b".to_owned())).contains("\"a b\""));
    let secret = with(|server| server.headers = vec![("x-key".to_owned(), "s3cret\n".to_owned())]);
    assert!(secret.contains("x-key") && !secret.contains("s3cret"), "{secret}");
    assert!(
        with(|server| server.headers = vec![("no spaces".to_owned(), String::new())]).contains("no spaces")
    );
}

#[test]
fn secrets_are_not_printed() {
    let mut server = server("https://istiod:15012");
    server.token = TokenSource::Literal("t0ken".to_owned());
    server.headers = vec![("x-key".to_owned(), "s3cret".to_owned())];
    let text = format!("{server:?}");
    assert!(text.contains("x-key") && !text.contains("t0ken") && !text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_token_is_trimmed_and_an_empty_one_is_refused() {
    let header = |token: &str| {
        let server = Server { token: TokenSource::Literal(token.to_owned()), ..server("https://a") };
        async move {
            let mut metadata = MetadataMap::new();
            server.authorize(&mut metadata).await.map(|()| metadata).map_err(|error| error.to_string())
        }
    };
    let metadata = header("abc\n").await.unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer abc");
    assert_eq!(metadata.get("clusterid").unwrap(), "c1");
    assert!(header(" \n").await.unwrap_err().contains("empty"));
    assert!(!header("tök\u{7}en").await.unwrap_err().contains("tök"));
}

#[tokio::test]
async fn an_http_address_uses_no_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Dialer::new(server(&format!("http://{}", listener.local_addr().unwrap())));
    let accept = async {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await.unwrap();
        preface
    };
    let (channel, preface) = tokio::join!(server.connect(), accept);
    assert!(channel.is_ok());
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[tokio::test]
async fn a_refused_connection_and_missing_roots_are_named() {
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Dialer::new(server(&format!("https://{address}"))).connect().await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = Dialer::new(server(&format!("https://{address}"))).connect().await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/root.pem"), "{error}");
}

/// A TLS server of `ca` that finishes handshakes with these groups and then says nothing.
async fn tls_server(ca: &Ca, classical: bool) -> (String, Tasks) {
    let leaf = ca.server(&["127.0.0.1"]).unwrap();
    let mut config = rustls::ServerConfig::clone(&leaf.server_config(false, &["h2"]).unwrap());
    if classical {
        let mut provider = rustls::crypto::CryptoProvider::clone(config.crypto_provider());
        provider.kx_groups.retain(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
        let certs = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certs, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let tasks = Tasks::new("tls server");
    tasks.spawn("accept", async move {
        let mut open = Vec::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // The client closes the connection when it rejects the server.
            open.extend(acceptor.accept(tcp).await);
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn under_the_post_quantum_policy_a_classical_server_is_refused() {
    let ca = Ca::new("root").unwrap();
    for (classical, key_exchange, accepted) in [
        (false, KeyExchange::PostQuantum, true),
        (true, KeyExchange::Preferred, true),
        (true, KeyExchange::PostQuantum, false),
    ] {
        let (address, _tasks) = tls_server(&ca, classical).await;
        let roots = RootSource::Pem(ca.root_pem());
        let connected = Dialer::new(Server { roots, key_exchange, ..server(&address) }).connect().await;
        assert_eq!(connected.is_ok(), accepted, "{classical} {key_exchange:?}: {connected:?}");
    }
}

#[tokio::test]
async fn an_open_connection_is_verified_again_when_the_roots_change() {
    let (ca, next) = (Ca::new("root").unwrap(), Ca::new("next").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root-cert.pem");
    let (address, _tasks) = tls_server(&ca, false).await;
    let dialer = Dialer::new(Server { roots: RootSource::File(file.clone()), ..server(&address) });
    assert_eq!(dialer.recheck().await, Ok(()), "there is none yet");
    std::fs::write(&file, ca.root_pem()).unwrap();
    let _channel = dialer.connect().await.unwrap();
    for fine in [ca.root_pem() + &next.root_pem(), "half a fi".to_owned(), next.root_pem() + &ca.root_pem()] {
        std::fs::write(&file, &fine).unwrap();
        assert_eq!(dialer.recheck().await, Ok(()), "{fine}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(dialer.recheck().await, Ok(()), "gone for a moment");
    assert!(dialer.connect().await.is_ok(), "the last good roots are in force");
    std::fs::write(&file, next.root_pem()).unwrap();
    let reason = dialer.recheck().await.unwrap_err().to_string();
    assert!(reason.contains("UnknownIssuer"), "{reason}");
    assert!(dialer.connect().await.is_err());
}
