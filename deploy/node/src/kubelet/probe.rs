//! Readiness probes, sent from the node's own network namespace as a kubelet's are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::net::TcpStream;

use super::spec::ContainerExt;

/// Between two probes of a container that is not ready yet. A kubelet keeps to the period; a world should be up sooner.
const EAGER: Duration = Duration::from_millis(100);
/// Kubernetes' defaults.
const PERIOD: i32 = 10;
const TIMEOUT: i32 = 1;
const FAILURES: i32 = 3;

/// One probe, with its target resolved.
#[derive(Debug, Clone)]
struct Check {
    to: SocketAddr,
    /// Path to GET; nothing means that accepting is enough.
    path: Option<String>,
    timeout: Duration,
}

/// Reports what the container's probe says, whenever that changes, until dropped. Without a probe a container that runs
/// is ready.
pub(super) async fn run(container: &Container, ip: Ipv4Addr, report: impl Fn(bool)) {
    let Some(probe) = &container.readiness_probe else {
        report(true);
        return std::future::pending().await;
    };
    let Some(check) = Check::of(probe, container, ip) else {
        tracing::warn!(
            container = container.name,
            "readiness probe has no usable port, the container never becomes ready"
        );
        return std::future::pending().await;
    };
    let period = seconds(probe.period_seconds.unwrap_or(PERIOD));
    let tolerated = probe.failure_threshold.unwrap_or(FAILURES).max(1);
    let (mut ready, mut failures) = (false, 0);
    loop {
        match check.passes().await {
            Ok(()) => failures = 0,
            Err(reason) => {
                failures += 1;
                tracing::debug!(container = container.name, failures, reason, "readiness probe failed");
            }
        }
        let is = if ready { failures < tolerated } else { failures == 0 };
        if is != ready {
            ready = is;
            report(ready);
        }
        tokio::time::sleep(if ready { period } else { EAGER }).await;
    }
}

/// At least one second.
fn seconds(number: i32) -> Duration {
    Duration::from_secs(number.max(1).try_into().unwrap_or(1))
}

impl Check {
    fn of(probe: &Probe, container: &Container, ip: Ipv4Addr) -> Option<Self> {
        let timeout = seconds(probe.timeout_seconds.unwrap_or(TIMEOUT));
        let (port, path) = match (&probe.http_get, &probe.tcp_socket) {
            (Some(get), _) => (&get.port, Some(get.path.clone().unwrap_or_else(|| "/".to_owned()))),
            (None, Some(tcp)) => (&tcp.port, None),
            (None, None) => return None,
        };
        let to = SocketAddr::new(IpAddr::V4(ip), container.port(port)?);
        Some(Self { to, path, timeout })
    }

    async fn passes(&self) -> Result<(), String> {
        let probe = async {
            let stream = TcpStream::connect(self.to).await.map_err(|error| error.to_string())?;
            let Some(path) = &self.path else { return Ok(()) };
            let status =
                get(stream, &self.to.to_string(), path).await.map_err(|error| format!("{error:#}"))?;
            if status.is_success() || status.is_redirection() {
                Ok(())
            } else {
                Err(format!("status {}", status.as_u16()))
            }
        };
        let timeout = || Err(format!("no response within {:?}", self.timeout));
        tokio::time::timeout(self.timeout, probe).await.unwrap_or_else(|_| timeout())
    }
}

/// The status of one GET.
async fn get(stream: TcpStream, host: &str, path: &str) -> anyhow::Result<StatusCode> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "playground")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    // The connection ends with the sender, and has to be driven until the response is here.
    let exchange = async move { sender.send_request(request).await.map(|response| response.status()) };
    let (status, _closed) = tokio::join!(exchange, connection);
    Ok(status?)
}

#[cfg(test)]
mod tests {
    use isthmus_rt::task::Tasks;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn server(status: &'static str) -> (Container, Tasks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = Tasks::new("test");
        tasks.spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        let container = json!({
            "name": "c", "ports": [{"name": "http", "containerPort": port}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
        });
        (serde_json::from_value(container).unwrap(), tasks)
    }

    #[tokio::test]
    async fn ready_follows_the_answer() {
        for (status, ok) in [("200 OK", true), ("503 No", false)] {
            let (container, _tasks) = server(status).await;
            let probe = container.readiness_probe.clone().unwrap();
            let check = Check::of(&probe, &container, Ipv4Addr::LOCALHOST).unwrap();
            assert_eq!(check.passes().await.is_ok(), ok, "{status}");
        }
    }

    #[tokio::test]
    async fn a_container_is_reported_ready_when_its_probe_passes_or_there_is_none() {
        let (probed, _tasks) = server("200 OK").await;
        for container in [probed, Container::default()] {
            let (ready, mut seen) = tokio::sync::mpsc::unbounded_channel();
            tokio::select! {
                () = run(&container, Ipv4Addr::LOCALHOST, |is| ready.send(is).unwrap()) => panic!("it never ends"),
                seen = seen.recv() => assert_eq!(seen, Some(true)),
            }
        }
    }
}
