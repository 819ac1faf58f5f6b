use std::path::PathBuf;

use isthmus_rt::drain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

use super::*;

const EVENT: &str = r#"{"Netns":"/var/run/netns/x","PodName":"sleep","PodNamespace":"sample",
    "IPs":[{"Interface":null,"Address":{"IP":"10.0.0.5","Mask":"////AA=="},"Gateway":""}]}"#;

/// Answers by the pod's name.
struct Script {
    seen: mpsc::UnboundedSender<AddEvent>,
    dropped: Arc<Notify>,
}

impl AddHandler for Script {
    fn add(&self, event: AddEvent) -> BoxFuture<'_, Result<(), AddError>> {
        Box::pin(async move {
            let name = event.pod_name.clone();
            let _ = self.seen.send(event);
            match name.as_str() {
                "sleep" => Ok(()),
                "forever" => {
                    let _guard = NotifyOnDrop(Arc::clone(&self.dropped));
                    std::future::pending().await
                }
                _ => Err(AddError::UnknownPod { namespace: "sample".to_owned(), name }),
            }
        })
    }
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    seen: mpsc::UnboundedReceiver<AddEvent>,
    dropped: Arc<Notify>,
    drain: drain::Drain,
    tasks: Tasks,
    registry: isthmus_rt::metrics::Registry,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let listener = bind(dir.path()).unwrap();
    let (sender, seen) = mpsc::unbounded_channel();
    let dropped = Arc::new(Notify::new());
    let script = Script { seen: sender, dropped: Arc::clone(&dropped) };
    let registry = isthmus_rt::metrics::Registry::default();
    let (drain, watch) = drain::channel();
    let tasks = Tasks::new("test");
    tasks.spawn("server", serve(listener, Arc::new(script), Metrics::register(&registry), watch));
    Server { path: dir.path().join(SOCKET), _dir: dir, seen, dropped, drain, tasks, registry }
}

impl Server {
    async fn exchange(&self, text: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn post(&self, body: &str) -> (String, String) {
        let head = format!("POST /cmdadd HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = self.exchange(&format!("{head}{body}")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

#[tokio::test]
async fn an_enrolled_pod_is_an_empty_200() {
    let mut server = server();
    assert_eq!(server.post(EVENT).await, ("HTTP/1.1 200 OK".to_owned(), String::new()));
    let event = server.seen.recv().await.unwrap();
    assert_eq!((event.pod_namespace.as_str(), event.ips.len()), ("sample", 1));
}

#[tokio::test]
async fn errors_are_plain_text_with_their_reason() {
    let server = server();
    let (status, body) = server.post(&EVENT.replace("\"sleep\"", "\"other\"")).await;
    assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
    assert_eq!(body, "pod sample/other is not known on this node\n");
    for bad in ["", "nonsense", r#"{"PodName":"x"}"#] {
        let (status, body) = server.post(bad).await;
        assert_eq!(status, "HTTP/1.1 400 Bad Request", "{bad}");
        assert!(body.starts_with("body: "), "{body}");
    }
    let (status, _) = server.post(&" ".repeat(MAX_BODY + 1)).await;
    assert_eq!(status, "HTTP/1.1 400 Bad Request");
    let not_found = server.exchange("POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(not_found.starts_with("HTTP/1.1 404"), "{not_found}");
    let wrong = server.exchange("GET /cmdadd HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(wrong.starts_with("HTTP/1.1 405"), "{wrong}");

    let text = server.registry.encode().unwrap();
    assert!(text.contains("istio_cni_plugin_requests_total{response_code=\"500\"} 1"), "{text}");
    assert!(text.contains("istio_cni_plugin_requests_total{response_code=\"400\"} 4"), "{text}");
}

#[tokio::test]
async fn a_disconnected_plugin_cancels_its_request() {
    let mut server = server();
    let body = EVENT.replace("\"sleep\"", "\"forever\"");
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    let head = format!("POST /cmdadd HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    assert!(server.seen.recv().await.is_some());
    drop(stream);
    server.dropped.notified().await;
}

#[tokio::test]
async fn the_server_stops_with_the_drain() {
    let server = server();
    assert_eq!(server.post(EVENT).await.0, "HTTP/1.1 200 OK");
    assert_eq!(server.drain.shutdown(Duration::from_secs(5)).await, drain::Outcome::Drained);
    server.tasks.wait().await;
    assert!(UnixStream::connect(&server.path).await.is_err());
}
