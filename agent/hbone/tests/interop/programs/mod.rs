//! Programs as peers: h2spec, nghttp2's, Node and Go. A program that is missing fails its test.

mod go;
mod h2spec;
mod nghttp2;
mod node;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use isthmus_hbone::server::Request;
use isthmus_rt::task::Tasks;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::applications::Seen;
use crate::pair::soon;
use crate::tls::TestTls;

/// What every other request is answered in [`answer_any`].
const BODY: &[u8] = b"any request is answered, for peers that cannot send CONNECT\n";

/// A running program, ended with this value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Certificate and key as files.
struct Files {
    _folder: TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(tls: &TestTls) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, &tls.certificate_pem).unwrap();
        std::fs::write(&key, &tls.key_pem).unwrap();
        Self { _folder: folder, certificate, key }
    }
}

/// Runs a program to its end and returns what it printed; its exit code is the caller's to judge.
async fn output(mut command: Command) -> (bool, String) {
    let name = format!("{command:?}");
    let run = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let done = tokio::time::timeout(std::time::Duration::from_secs(300), run).await;
    let done = done.expect(&name).unwrap().expect(&name);
    let text = [&done.stdout[..], &done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Starts a server that prints its port first, and then how each of its connections was read: `whole LENGTH HASH` or
/// `broken`.
async fn start_server(mut command: Command) -> (Program, u16, mpsc::UnboundedReceiver<Seen>) {
    let name = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect(&name);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let program = Program(child);
    let (tell, seen) = mpsc::unbounded_channel();
    let (port, mut told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let Some(Ok(first)) = lines.next() else { return };
        let _ = port.send(first.parse::<u16>().unwrap());
        for line in lines.map_while(Result::ok) {
            let _ = tell.send(line.strip_prefix("whole ").map(str::to_owned));
        }
    });
    let port = tokio::time::timeout(std::time::Duration::from_secs(120), told.recv()).await;
    let port = port.expect(&name).expect(&name);
    (program, port, seen)
}

/// Answers 200 with [`BODY`] to whatever is asked, and reads what follows the request.
fn answer_any(tasks: &Tasks) -> impl Fn(Request) + Clone + Send + 'static {
    let tasks = tasks.clone();
    move |request: Request| {
        tasks.spawn("answer", async move {
            let Ok(mut stream) = request.accept(None) else { return };
            if stream.send(BODY).await.is_err() || stream.finish().is_err() {
                return;
            }
            while let Some(Ok(part)) = stream.recv().await {
                stream.release(part.len());
            }
        });
    }
}

/// How the connections to our server were read, when a client of another language has done what
/// [`crate::applications::use_all`] does: those of `sizes` one after the other, then a reset and 64 more.
async fn check_seen(seen: &mut mpsc::UnboundedReceiver<Seen>, sizes: &[usize]) {
    for size in sizes {
        let digest = soon(seen.recv()).await.unwrap().expect("an end, not a reset");
        assert!(digest.starts_with(&format!("{size} ")), "{digest} of {size}");
    }
    let mut resets = 0;
    for _ in 0..65 {
        resets += usize::from(soon(seen.recv()).await.unwrap().is_none());
    }
    assert_eq!(resets, 1);
}
