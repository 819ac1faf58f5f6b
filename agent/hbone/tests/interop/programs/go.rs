//! Go's `net/http`, as Istio's own Go programs use it for HBONE, in both roles. Its streams end when the server's half does,
//! so no server ends first here.

use std::path::{Path, PathBuf};
use std::process::Command;

use isthmus_hbone::Settings;
use isthmus_rt::task::Tasks;

use super::{Files, check_seen, output, start_server};
use crate::applications::{client_resets, server_resets, use_most};
use crate::ours;
use crate::tls::TestTls;

fn go(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/programs/peer.go");
    let program = folder.join("peer");
    let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(source).status().expect("go");
    assert!(built.success());
    program
}

#[tokio::test]
async fn our_client_uses_gos_server() {
    let (made, tasks, folder) = (TestTls::new(), Tasks::new("test"), tempfile::tempdir().unwrap());
    let files = Files::new(&made);
    let mut command = Command::new(go(folder.path()));
    command.arg("server").arg(&files.certificate).arg(&files.key);
    let (_program, port, mut seen) = start_server(command).await;
    let peer = ([127, 0, 0, 1], port).into();
    let tunnel = ours::connect(peer, &made.client, &Settings::default(), &tasks).await;
    let open = async |port| ours::open(&tunnel, &tasks, port).await;
    use_most(open, &mut seen).await;
    client_resets(open, &mut seen).await;
    server_resets(open).await;
}

#[tokio::test]
async fn gos_client_uses_our_server() {
    let (made, tasks, folder) = (TestTls::new(), Tasks::new("test"), tempfile::tempdir().unwrap());
    let (address, mut seen) = ours::serve_applications(&made.server, &Settings::default(), &tasks).await;
    let mut command = Command::new(go(folder.path()));
    command.arg("client").arg(address.port().to_string());
    let (done, text) = output(command).await;
    assert!(done, "{text}");
    check_seen(&mut seen, &[5_000_000, 1_000_003]).await;
}
