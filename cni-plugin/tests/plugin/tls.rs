//! The API server over TLS.

use std::net::TcpListener;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::runtime::{TestRuntime, api_answers, serve};

/// An authority, and a server certificate of it for 127.0.0.1.
fn authority() -> (String, ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    (ca.pem(), config)
}

fn serve_tls(runtime: &TestRuntime, config: ServerConfig) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let (log, config) = (Arc::clone(&runtime.api), Arc::new(config));
    std::thread::spawn(move || {
        let none = json!({"metadata": {}});
        let answer = api_answers(none.clone(), none);
        for stream in listener.incoming().map(Result::unwrap) {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut request = Vec::new();
            // A head without a body; a client that rejects the certificate sends none.
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if std::io::Read::read(&mut stream, &mut byte).unwrap_or(0) == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            serve(request.as_slice(), &mut stream, &log, &answer);
        }
    });
    server
}

#[test]
fn only_the_kubeconfigs_roots_are_trusted() {
    let runtime = TestRuntime::empty();
    let (ca, config) = authority();
    let server = serve_tls(&runtime, config);
    std::fs::write(runtime.dir.path().join("ca.pem"), ca).unwrap();

    runtime.kubeconfig(&format!("    server: {server}\n    certificate-authority: ca.pem"));
    assert!(runtime.add("sample", "sleep").ok);
    assert_eq!(runtime.api.lock().unwrap().len(), 2);

    let (other, _) = authority();
    std::fs::write(runtime.dir.path().join("ca.pem"), other).unwrap();
    let (_, details) = runtime.add("sample", "sleep").error();
    assert!(details.contains("certificate"), "{details}");
    assert_eq!(runtime.api.lock().unwrap().len(), 2, "no request may follow a failed handshake");

    runtime.kubeconfig(&format!("    server: {server}\n    insecure-skip-tls-verify: true"));
    assert!(runtime.add("sample", "sleep").ok);

    runtime.kubeconfig(&format!("    server: {server}"));
    let (_, details) = runtime.add("sample", "sleep").error();
    assert!(details.contains("certificate-authority"), "{details}");
}
