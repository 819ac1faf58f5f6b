use std::sync::Arc;

use isthmus_identity::{CertSource, KeyExchange, Manager};
use isthmus_kit::istiod::{Answer, Istiod};
use isthmus_kit::pki::Ca;
use isthmus_rt::task::Tasks;

use super::*;
use crate::channel::{RootSource, TokenSource};

const DAY: Duration = Duration::from_secs(86_400);

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

async fn istiod() -> (Arc<Ca>, Istiod) {
    let ca = Arc::new(Ca::new("root").unwrap());
    let istiod = Istiod::start(&ca).await.unwrap();
    (ca, istiod)
}

fn config(istiod: &Istiod) -> Config {
    Config {
        server: Server {
            address: istiod.url(),
            roots: RootSource::Pem(istiod.root_pem().to_owned()),
            token: TokenSource::Literal("t0ken".to_owned()),
            cluster_id: "east".into(),
            headers: vec![("x-extra".to_owned(), "yes".to_owned())],
            alt_hostname: None,
            key_exchange: KeyExchange::default(),
        },
        impersonate: true,
        deadline: Duration::from_secs(10),
    }
}

async fn sign(client: &CaClient) -> Result<Vec<String>, SignError> {
    client.sign(&id(), "csr".to_owned(), DAY).await
}

#[tokio::test]
async fn a_certificate_is_requested_and_returned() {
    let (ca, istiod) = istiod().await;
    let tasks = Tasks::new("test");
    let client = Arc::new(CaClient::new(config(&istiod)).unwrap());
    let manager = Manager::new(client, isthmus_identity::Config::default(), &tasks);
    let certificate = manager.certificate(&id()).await.unwrap();
    assert_eq!(certificate.identity(), &id());
    assert_eq!(certificate.roots()[0].pem.trim(), ca.root_pem().replace("\r\n", "\n").trim());
    let lifetime = certificate.not_after().duration_since(certificate.not_before()).unwrap();
    assert!(lifetime.abs_diff(DAY) < Duration::from_secs(120), "{lifetime:?}");

    let [signing] = istiod.signings().try_into().expect("one request");
    let header = |name: &str| signing.metadata.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("authorization"), Some("Bearer t0ken"));
    assert_eq!(header("clusterid"), Some("east"));
    assert_eq!(header("x-extra"), Some("yes"));
    assert_eq!(signing.impersonated(), Some(id().to_string().as_str()));
    assert!(signing.request.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    // csr = 1, validity_duration = 3 as varint 86400, metadata = 4.
    let csr = signing.request.csr.len();
    let after_csr =
        signing.raw.len() - signing.raw.windows(5).position(|at| at == b"\x18\x80\xa3\x05\x22").unwrap();
    assert_eq!(signing.raw[0], 0x0a);
    assert_eq!(
        signing.raw.len() - after_csr,
        csr + 3,
        "the request is one tag, two bytes of length and its text"
    );
}

#[tokio::test]
async fn without_impersonation_no_identity_is_sent() {
    let (_, istiod) = istiod().await;
    istiod.on_sign(|_| Answer::Chain(vec!["leaf".to_owned(), "root".to_owned()]));
    let client = CaClient::new(Config { impersonate: false, ..config(&istiod) }).unwrap();
    assert_eq!(sign(&client).await.unwrap(), ["leaf", "root"]);
    assert_eq!(istiod.signings()[0].request.metadata, None);
}

#[tokio::test]
async fn error_responses_map_to_distinct_errors() {
    let (_, istiod) = istiod().await;
    let client = CaClient::new(Config { deadline: Duration::from_millis(300), ..config(&istiod) }).unwrap();
    for length in [0, 1] {
        istiod.on_sign(move |_| Answer::Chain(vec!["leaf".to_owned(); length]));
        assert_eq!(sign(&client).await.unwrap_err(), SignError::BadAnswer(CertError::NoRoots(length)));
    }
    istiod.on_sign(|_| Answer::Refuse(Status::permission_denied("no pod of it on this node")));
    let (code, message) = ("PermissionDenied".to_owned(), "no pod of it on this node".to_owned());
    assert_eq!(sign(&client).await.unwrap_err(), SignError::Refused { code, message });
    istiod.on_sign(|_| Answer::Silence);
    assert_eq!(sign(&client).await.unwrap_err(), SignError::Deadline(Duration::from_millis(300)));
}

#[tokio::test]
async fn an_unreachable_ca_is_named_and_used_again_once_it_is_back() {
    let (ca, istiod) = istiod().await;
    let config = config(&istiod);
    let (address, url) = (istiod.address(), istiod.url());
    let client = CaClient::new(config).unwrap();
    let chain = || Answer::Chain(vec!["leaf".to_owned(), "root".to_owned()]);
    istiod.on_sign(move |_| chain());
    sign(&client).await.unwrap();
    istiod.stop().await;
    let error = sign(&client).await.unwrap_err();
    assert!(matches!(&error, SignError::Unreachable { address, .. } if *address == url), "{error}");
    let istiod = Istiod::start_at(address, &ca).await.unwrap();
    istiod.on_sign(move |_| chain());
    // The attempt that finds the old connection dead may itself fail.
    let mut last = sign(&client).await;
    for _ in 0..3 {
        if last.is_ok() {
            break;
        }
        last = sign(&client).await;
    }
    last.unwrap();
}

#[tokio::test]
async fn a_missing_token_and_a_foreign_ca_are_named() {
    let (_, istiod) = istiod().await;
    let mut missing = config(&istiod);
    missing.server.token = TokenSource::File("/nowhere/istio-token".into());
    let error = sign(&CaClient::new(missing).unwrap()).await.unwrap_err();
    assert!(
        matches!(error, SignError::Credentials { .. }) && error.to_string().contains("/nowhere/istio-token"),
        "{error}"
    );
    let mut foreign = config(&istiod);
    foreign.server.roots = RootSource::Pem(Ca::new("another").unwrap().root_pem());
    let error = sign(&CaClient::new(foreign).unwrap()).await.unwrap_err();
    assert!(
        matches!(error, SignError::Unreachable { .. }) && error.to_string().contains("UnknownIssuer"),
        "{error}"
    );
    assert!(istiod.signings().is_empty(), "nothing was sent to it");
    let mut never = config(&istiod);
    never.server.roots = RootSource::System;
    assert!(CaClient::new(never).is_err());
}

#[tokio::test]
async fn the_connection_is_replaced_only_when_new_roots_distrust_the_ca() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root-cert.pem");
    let (ca, istiod) = istiod().await;
    let next = Arc::new(Ca::new("next").unwrap());
    let mut config = config(&istiod);
    config.server.roots = RootSource::File(file.clone());
    let client = CaClient::new(config).unwrap();
    let chain = || Answer::Chain(vec!["leaf".to_owned(), "root".to_owned()]);
    istiod.on_sign(move |_| chain());
    std::fs::write(&file, ca.root_pem()).unwrap();
    sign(&client).await.unwrap();
    std::fs::write(&file, "garbage").unwrap();
    sign(&client).await.unwrap();
    std::fs::write(&file, ca.root_pem() + &next.root_pem()).unwrap();
    sign(&client).await.unwrap();
    // The old root is gone: the open connection is not used any more, and no new one is made.
    std::fs::write(&file, next.root_pem()).unwrap();
    let error = sign(&client).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let address = istiod.address();
    istiod.stop().await;
    let istiod = Istiod::start_at(address, &next).await.unwrap();
    istiod.on_sign(move |_| chain());
    sign(&client).await.unwrap();
}

#[tokio::test]
async fn a_silent_ca_fails_at_the_deadline() {
    let (_, istiod) = istiod().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config { deadline: Duration::from_millis(300), ..config(&istiod) };
    config.server.address = format!("https://{}", silent.local_addr().unwrap());
    let error = sign(&CaClient::new(config).unwrap()).await.unwrap_err();
    assert_eq!(error, SignError::Deadline(Duration::from_millis(300)));
}

#[tokio::test]
async fn an_invalid_token_is_reported_without_its_text_and_not_sent() {
    let (_, istiod) = istiod().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("istio-token");
    std::fs::write(&file, "gar\u{7}bage\u{0}").unwrap();
    let mut config = config(&istiod);
    config.server.token = TokenSource::File(file.clone());
    let client = CaClient::new(config).unwrap();
    let error = sign(&client).await.unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()) && !error.contains("bage"), "{error}");
    assert!(istiod.signings().is_empty());
    // It is read anew for each request.
    std::fs::write(&file, "t0ken").unwrap();
    istiod.on_sign(|_| Answer::Chain(vec!["leaf".to_owned(), "root".to_owned()]));
    sign(&client).await.unwrap();
}
