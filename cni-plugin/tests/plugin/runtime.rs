//! A container runtime that runs the built plugin, with a scripted API server and a scripted node role.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A request to a scripted server.
#[derive(Debug, Clone)]
pub(crate) struct RecordedRequest {
    pub(crate) line: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

pub(crate) type Log = Arc<Mutex<Vec<RecordedRequest>>>;

/// A run directory with the files and sockets that the plugin finds there.
pub(crate) struct TestRuntime {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) api: Log,
    pub(crate) node: Log,
}

/// The outcome of one run of the plugin.
pub(crate) struct PluginRun {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl PluginRun {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {:?}", self.stdout))
    }

    /// The error result's code and details.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.ok, "{}", self.stdout);
        let result = self.json();
        (result["code"].as_u64().unwrap(), result["details"].as_str().unwrap().to_owned())
    }
}

impl TestRuntime {
    /// No kubeconfig yet, and no server.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), api: Log::default(), node: Log::default() }
    }

    /// An API server that knows one pod with these labels in a namespace with those, and a node role that says 200.
    pub(crate) fn with(pod: Value, namespace: Value) -> Self {
        let runtime = Self::empty();
        runtime.serve_api(pod, namespace);
        runtime.serve_node("200 OK", "");
        runtime
    }

    pub(crate) fn serve_api(&self, pod: Value, namespace: Value) {
        self.serve_api_answering(api_answers(pod, namespace));
    }

    pub(crate) fn serve_api_answering(
        &self,
        answer: impl Fn(&RecordedRequest) -> (String, String) + Send + 'static,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        self.kubeconfig(&format!("    server: {server}"));
        let log = Arc::clone(&self.api);
        std::thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                serve(&stream, &stream, &log, &answer);
            }
        });
    }

    pub(crate) fn kubeconfig(&self, cluster: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: istio-cni-context\nclusters:\n- name: local\n  \
             cluster:\n{cluster}\nusers:\n- name: istio-cni\n  user:\n    token: sesame\ncontexts:\n- name: \
             istio-cni-context\n  context:\n    cluster: local\n    user: istio-cni\n"
        );
        std::fs::write(self.dir.path().join("istio-cni-kubeconfig"), text).unwrap();
    }

    pub(crate) fn serve_node(&self, status: &'static str, body: &'static str) {
        self.serve_unix("pluginevent.sock", status, body, Arc::clone(&self.node));
    }

    /// The node role's socket for lines; what came.
    pub(crate) fn serve_log(&self) -> Log {
        let log = Log::default();
        self.serve_unix("log.sock", "200 OK", "", Arc::clone(&log));
        log
    }

    fn serve_unix(&self, name: &str, status: &'static str, body: &'static str, log: Log) {
        let listener = UnixListener::bind(self.dir.path().join(name)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                serve(&stream, &stream, &log, &|_| (status.to_owned(), body.to_owned()));
            }
        });
    }

    /// The stdin of a chained call, with `prevResult`.
    pub(crate) fn stdin(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "playground", "type": "isthmus-cni",
            "cni_agent_run_dir": self.dir.path(), "ambient_enabled": true, "pod_namespace": "istio-system",
            "exclude_namespaces": ["kube-system"], "plugin_log_level": "debug",
            "prevResult": previous(),
        })
    }

    pub(crate) fn add(&self, namespace: &str, name: &str) -> PluginRun {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        self.run("ADD", &self.stdin().to_string(), &[("CNI_ARGS", &args)])
    }

    /// Runs the binary as a runtime does.
    pub(crate) fn run(&self, command: &str, stdin: &str, env: &[(&str, &str)]) -> PluginRun {
        let netns = self.dir.path().join("netns");
        std::fs::write(&netns, "").unwrap();
        run(command, stdin, &netns, env)
    }
}

pub(crate) fn previous() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/x"}],
        "ips": [{"interface": 0, "address": "10.11.0.5/24", "gateway": "10.11.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    })
}

fn run(command: &str, stdin: &str, netns: &Path, env: &[(&str, &str)]) -> PluginRun {
    let mut child = Command::new(env!("CARGO_BIN_EXE_isthmus-cni"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // VERSION answers without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    PluginRun {
        ok: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

type Answer = dyn Fn(&RecordedRequest) -> (String, String);

/// The answers of an API server that knows `sample/sleep` and no other pod.
pub(crate) fn api_answers(pod: Value, namespace: Value) -> impl Fn(&RecordedRequest) -> (String, String) {
    move |seen: &RecordedRequest| match seen.line.as_str() {
        "GET /api/v1/namespaces/sample/pods/sleep HTTP/1.1" => ("200 OK".to_owned(), pod.to_string()),
        "GET /api/v1/namespaces/sample HTTP/1.1" => ("200 OK".to_owned(), namespace.to_string()),
        _ => {
            let status = json!({"kind": "Status", "message": "pods \"other\" not found", "code": 404});
            ("404 Not Found".to_owned(), status.to_string())
        }
    }
}

/// Answers one request on a stream and closes it; the body goes out in chunks.
pub(crate) fn serve(reader: impl Read, mut writer: impl Write, log: &Log, answer: &Answer) {
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let seen =
        RecordedRequest { line: line.trim_end().to_owned(), headers, body: String::from_utf8(body).unwrap() };
    let (status, body) = answer(&seen);
    log.lock().unwrap().push(seen);
    let mut text = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.as_bytes().chunks(7) {
        text.push_str(&format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    }
    text.push_str("0\r\n\r\n");
    // The client may have closed, for instance because it does not trust this server.
    let _ = writer.write_all(text.as_bytes());
    let _ = writer.flush();
}
