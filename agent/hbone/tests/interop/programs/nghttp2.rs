//! nghttp2's programs: nghttpx as a forward proxy is a server towards our client and a client towards our server, h2load
//! and nghttp are clients of a server that answers any request. nghttpx does not pass on the end of a
//! tunnel's half, and ends what a server resets.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use isthmus_hbone::Settings;
use isthmus_kit::wait::eventually_some;
use isthmus_rt::task::Tasks;
use tokio::net::TcpStream;

use super::{BODY, Files, Program, answer_any, output};
use crate::applications::{client_resets, exchange};
use crate::ours;
use crate::tls::TestTls;

/// A forward proxy in front of `backend`.
async fn nghttpx(backend: SocketAddr, files: &Files, more: &[&str]) -> (Program, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("nghttpx");
    command.args([
        "--conf=/dev/null",
        "--http2-proxy",
        "--insecure",
        "--no-ocsp",
        "--workers=1",
        "--log-level=WARN",
    ]);
    command.arg(format!("--frontend={},{}", address.ip(), address.port()));
    command.arg(format!("--backend={},{};;proto=h2;tls", backend.ip(), backend.port()));
    command.args(more).arg(&files.key).arg(&files.certificate).stdin(Stdio::null());
    let program = Program(command.spawn().expect("nghttpx"));
    eventually_some(async || TcpStream::connect(address).await.ok(), || "nghttpx listens".to_owned()).await;
    (program, address)
}

#[tokio::test]
async fn nghttpx_is_between_our_client_and_our_server() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    let files = Files::new(&made);
    let small = ["--frontend-http2-window-size=1000", "--backend-http2-window-size=1000"];
    for more in [&[][..], &small] {
        let (backend, mut seen) = ours::serve_applications(&made.server, &Settings::default(), &tasks).await;
        let (_proxy, address) = nghttpx(backend, &files, more).await;
        let tunnel = ours::connect(address, &made.client, &Settings::default(), &tasks).await;
        let open = async |port| ours::open(&tunnel, &tasks, port).await;
        client_resets(open, &mut seen).await;
        exchange(open).await;
    }
}

#[tokio::test]
async fn h2load_is_answered() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    let address = ours::listen(&made.server, &Settings::default(), &tasks, answer_any(&tasks)).await;
    let mut command = Command::new("h2load");
    command.args(["-n", "20000", "-c", "8", "-m", "100", &format!("https://{address}/")]);
    let (done, text) = output(command).await;
    assert!(done, "{text}");
    assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    assert!(text.contains("status codes: 20000 2xx"), "{text}");
}

#[tokio::test]
async fn nghttp_uploads_and_downloads() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    let address = ours::listen(&made.server, &Settings::default(), &tasks, answer_any(&tasks)).await;
    let folder = tempfile::tempdir().unwrap();
    let upload = folder.path().join("upload");
    std::fs::write(&upload, vec![7; 3_000_000]).unwrap();
    // With padding, CONTINUATION, and windows of all sizes.
    let shapes: [&[&str]; 4] = [&[], &["--padding=255"], &["--continuation"], &["--window-bits=10"]];
    for shape in shapes {
        let (done, text) = output(nghttp(shape, &upload, address)).await;
        assert!(done && text.contains(std::str::from_utf8(BODY).unwrap()), "{shape:?}: {text}");
    }
}

fn nghttp(shape: &[&str], upload: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new("nghttp");
    command.args(["--no-dep", "--data"]).arg(upload).args(shape).arg(format!("https://{address}/"));
    command
}
