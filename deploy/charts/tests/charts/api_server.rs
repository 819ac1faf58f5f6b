//! A real API server with an etcd of its own, for as long as it is held.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::helm::program;

/// Bearer token of an administrator.
const TOKEN: &str = "administrator";
/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether it has.
const PAUSE: Duration = Duration::from_millis(100);

/// The two processes and their folder.
pub(crate) struct ApiServer {
    etcd: Child,
    server: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl ApiServer {
    /// Starts both and waits until the server answers.
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [store, peers, port] = free_ports()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (store, peers) = (url(store), url(peers));
        let etcd = start(
            "ETCD",
            &folder,
            &[
                &format!("--data-dir={}", path("data")),
                &format!("--listen-client-urls={store}"),
                &format!("--advertise-client-urls={store}"),
                &format!("--listen-peer-urls={peers}"),
                &format!("--initial-advertise-peer-urls={peers}"),
                &format!("--initial-cluster=default={peers}"),
            ],
        )?;
        std::fs::write(path("tokens"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        let key = Command::new("openssl")
            .args(["genrsa", "-out", &path("key"), "2048"])
            .output()
            .context("openssl")?;
        ensure!(key.status.success(), "openssl: {}", String::from_utf8_lossy(&key.stderr));
        let server = start(
            "KUBE_APISERVER",
            &folder,
            &[
                &format!("--etcd-servers={store}"),
                &format!("--cert-dir={}", path("certs")),
                &format!("--secure-port={port}"),
                "--bind-address=127.0.0.1",
                &format!("--token-auth-file={}", path("tokens")),
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://example.test",
                &format!("--service-account-key-file={}", path("key")),
                &format!("--service-account-signing-key-file={}", path("key")),
                "--service-cluster-ip-range=10.96.0.0/16",
            ],
        )?;
        let mut this = Self { etcd, server, folder, port };
        this.ready()?;
        Ok(this)
    }

    /// What the server answers to a request, status first.
    pub(crate) fn ask(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
        // By a program of the system: its certificate, which it makes itself, is not to be trusted by ours.
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--request", method, "--data-binary", body])
            .args([
                "--header",
                &format!("Authorization: Bearer {TOKEN}"),
                "--header",
                &format!("Content-Type: {kind}"),
            ])
            .args(["--write-out", "\n%{http_code}", &format!("https://127.0.0.1:{}{path}", self.port)])
            .output()
            .context("curl")?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let (answer, status) = text.rsplit_once('\n').context("no status")?;
        Ok((status.parse()?, answer.to_owned()))
    }

    fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline
            && self.server.try_wait()?.is_none()
            && self.etcd.try_wait()?.is_none()
        {
            if self.ask("GET", "/readyz", "text/plain", "").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let log = |name: &str| tail(&self.folder.path().join(format!("{name}.log")));
        bail!("no API server: {}\n{}", log("KUBE_APISERVER"), log("ETCD"))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for process in [&mut self.server, &mut self.etcd] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts the program that a variable names; what it says is in a file.
fn start(variable: &str, folder: &tempfile::TempDir, args: &[&str]) -> Result<Child> {
    let log = std::fs::File::create(folder.path().join(format!("{variable}.log")))?;
    let mut command = Command::new(program(variable));
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| variable.to_owned())
}

/// Ports that were free a moment ago; these programs can be told none that they choose themselves.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind(("127.0.0.1", 0));
    let all = [bind()?, bind()?, bind()?];
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    Ok([port(&all[0])?, port(&all[1])?, port(&all[2])?])
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
