//! The lines of the CNI plugin: `POST /log` on a Unix socket with a JSON array of strings, each a line as a JSON object.
//! The plugin runs on the host, where its own log is a file; here it reaches the log of the node role. Owns the socket and
//! the lines' form; must not know what they say.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::net::{UnixListener, UnixStream};

use isthmus_sys::private_socket;

/// Name of the socket in the run directory.
const SOCKET: &str = "log.sock";
/// Longest body, in bytes.
const MAX_BODY: usize = 256 << 10;
/// Lines at once; the plugin sends one.
const MAX_LINES: usize = 256;
/// Connections at once: a line may be lost, memory not.
const MAX_CONNECTIONS: usize = 64;
/// Deadline of a request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// One line, as the plugin writes it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    time: Value,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// Binds the socket with mode 0600, replacing a stale one.
///
/// # Errors
/// When the folder cannot be made or the path cannot be bound.
pub fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    private_socket::bind(&run_dir.join(SOCKET), |path| UnixListener::bind(path))
}

/// Logs what the plugin sends until the drain begins.
pub async fn serve(listener: UnixListener, drain: Watch) {
    let tasks = Tasks::new("plugin log");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        match accepted {
            Ok((stream, _)) if tasks.len() < MAX_CONNECTIONS => {
                tasks.spawn("plugin log", connection(stream));
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
    tasks.abort_all().await;
}

async fn connection(stream: UnixStream) {
    let service = service_fn(|request| async move {
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = receive(request).await;
        Ok::<_, Infallible>(response)
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = serving.await;
}

async fn receive(request: Request<Incoming>) -> StatusCode {
    if request.uri().path() != "/log" {
        return StatusCode::NOT_FOUND;
    }
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let Ok(Ok(body)) = tokio::time::timeout(TIMEOUT, body).await else { return StatusCode::BAD_REQUEST };
    match serde_json::from_slice::<Vec<String>>(&body.to_bytes()) {
        Ok(lines) => {
            lines.iter().take(MAX_LINES).for_each(|line| log(line));
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

fn log(text: &str) {
    let (level, message) = read(text);
    match level {
        tracing::Level::ERROR => tracing::error!(target: "cni-plugin", "{message}"),
        tracing::Level::WARN => tracing::warn!(target: "cni-plugin", "{message}"),
        tracing::Level::INFO => tracing::info!(target: "cni-plugin", "{message}"),
        _ => tracing::debug!(target: "cni-plugin", "{message}"),
    }
}

/// Level and text of a line; one that is no such object is kept as it is. The time is that of the host and is close to
/// now, but for a line that came late.
fn read(text: &str) -> (tracing::Level, String) {
    let Ok(Line { level, msg, fields, .. }) = serde_json::from_str(text) else {
        return (tracing::Level::INFO, text.to_owned());
    };
    let level = match level.as_str() {
        "error" | "fatal" => tracing::Level::ERROR,
        "warn" => tracing::Level::WARN,
        "debug" => tracing::Level::DEBUG,
        _ => tracing::Level::INFO,
    };
    let fields = fields.iter().map(|(key, value)| match value {
        Value::String(text) => format!("\t{key}={text:?}"),
        other => format!("\t{key}={other}"),
    });
    (level, std::iter::once(msg).chain(fields).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_rt::drain;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn lines_are_read_with_their_level_and_fields() {
        use tracing::Level;
        let rows = [
            (r#"{"level":"error","time":"T","msg":"m","pod":"a/b"}"#, Level::ERROR, "m\tpod=\"a/b\""),
            (r#"{"level":"warn","msg":"m","n":7}"#, Level::WARN, "m\tn=7"),
            (r#"{"level":"debug","msg":"m"}"#, Level::DEBUG, "m"),
            (r#"{"level":"other","msg":"m"}"#, Level::INFO, "m"),
            ("plain", Level::INFO, "plain"),
        ];
        for (text, level, want) in rows {
            assert_eq!(read(text), (level, want.to_owned()), "{text}");
        }
    }

    #[tokio::test]
    async fn the_socket_takes_arrays_of_strings() {
        let dir = tempfile::tempdir().unwrap();
        let (stop, watch) = drain::channel();
        let tasks = Tasks::new("test");
        tasks.spawn("log", serve(bind(dir.path()).unwrap(), watch));
        let cases = [
            ("POST /log", r#"["{\"level\":\"info\",\"msg\":\"m\"}"]"#, "200"),
            ("POST /log", "{}", "400"),
            ("GET /log", "", "405"),
            ("POST /other", "[]", "404"),
        ];
        for (line, body, status) in cases {
            let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
            let request =
                format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line} {body}: {answer}");
        }
        stop.shutdown(Duration::from_secs(5)).await;
        tasks.wait().await;
    }
}
