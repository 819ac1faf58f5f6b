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
    }
}

#[test]
fn what_can_never_work_is_found_and_named() {
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
    assert!(header(" \n").await.unwrap_err().contains("it is empty"));
    assert!(!header("tök\u{7}en").await.unwrap_err().contains("tök"));
}

#[tokio::test]
async fn a_plain_address_is_spoken_to_without_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Arc::new(server(&format!("http://{}", listener.local_addr().unwrap())));
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
    let error = Arc::new(server(&format!("https://{address}"))).connect().await.unwrap_err();
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = Arc::new(server(&format!("https://{address}"))).connect().await.unwrap_err();
    assert!(error.contains("/nowhere/root.pem"), "{error}");
}
