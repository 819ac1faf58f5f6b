//! Node's `http2`, whose engine is nghttp2, in both roles.

use std::path::Path;
use std::process::Command;

use isthmus_hbone::Settings;
use isthmus_rt::task::Tasks;

use super::{Files, check_seen, output, start_server};
use crate::applications::{client_resets, use_all};
use crate::ours;
use crate::tls::TestTls;

fn node(script: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/programs").join(script));
    command.args(arguments);
    command
}

#[tokio::test]
async fn our_client_uses_nodes_server() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    let files = Files::new(&made);
    let command = node("server.mjs", &[&files.certificate, &files.key]);
    let (_program, port, mut seen) = start_server(command).await;
    let peer = ([127, 0, 0, 1], port).into();
    let tunnel = ours::connect(peer, &made.client, &Settings::default(), &tasks).await;
    let open = async |port| ours::open(&tunnel, &tasks, port).await;
    use_all(open, &mut seen).await;
    client_resets(open, &mut seen).await;
}

#[tokio::test]
async fn nodes_client_uses_our_server() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    let (address, mut seen) = ours::serve_applications(&made.server, &Settings::default(), &tasks).await;
    let port = address.port().to_string();
    let (done, text) = output(node("client.mjs", &[Path::new(&port)])).await;
    assert!(done, "{text}");
    check_seen(&mut seen, &[5_000_000, 1_000_003, 1_000_003]).await;
}
