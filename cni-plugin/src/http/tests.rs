//! The client against scripted answers on a unix socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A server that answers one connection with these bytes once the request's head has come; what it got.
struct Server {
    dir: tempfile::TempDir,
    requests: mpsc::Receiver<String>,
}

impl Server {
    fn answering(answer: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (request, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map(Result::unwrap) {
                let mut text = Vec::new();
                let ended = |text: &[u8]| text.ends_with(b"\r\n\r\n") || text.ends_with(b"\r\n\r\n{}");
                while !ended(&text) {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        break;
                    }
                    text.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
                // A POST's head ends like a request without a body; the rest is read so that closing is no reset.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut text);
                let _ = request.send(String::from_utf8(text).unwrap());
            }
        });
        Self { dir, requests }
    }

    fn client(&self, deadline: Duration) -> Client {
        Client::unix(UnixConnector(self.dir.path().join("socket")), deadline, 16)
    }
}

fn read(answer: &'static str) -> Result<Response, HttpError> {
    Server::answering(answer).client(SOON).get("http://server/x", None)
}

#[test]
fn a_body_ends_by_length_by_chunks_or_with_the_connection() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", 200, "abc"),
        ("HTTP/1.1 500 X\r\n\r\nwhy", 500, "why"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nT: x\r\n\r\n",
            200,
            "abc",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 No\r\nContent-Length: 0\r\n\r\n", 404, ""),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", 204, ""),
        ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", 302, ""),
    ];
    for (text, status, body) in cases {
        let got = read(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!((got.status, got.body.as_slice()), (status, body.as_bytes()), "{text}");
    }
}

#[test]
fn an_answer_that_is_not_http_or_is_cut_off_is_an_error() {
    let cases = [
        ("", "disconnected"),
        ("HTTP/2 200\r\n\r\n", "protocol"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "protocol"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "protocol"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer encoding"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "protocol"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "disconnected"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        ("HTTP/1.1 200 OK", "disconnected"),
    ];
    for (text, named) in cases {
        let error = read(text).unwrap_err().to_string();
        assert!(error.to_lowercase().contains(named), "{text:?}: {error}");
    }
}

#[test]
fn a_body_above_the_limit_is_an_error() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n12345678901234567",
        "HTTP/1.1 200 OK\r\n\r\n12345678901234567",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n12345678901234567\r\n0\r\n\r\n",
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("16 bytes"), "{text:?}: {error}");
    }
}

#[test]
fn a_request_carries_its_token_or_body_and_nothing_can_be_smuggled_into_it() {
    let server = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    server.client(SOON).get("http://server:1/x?y", Some("t")).unwrap();
    let text = server.requests.recv_timeout(SOON).unwrap().to_lowercase();
    assert!(text.starts_with("get /x?y http/1.1\r\n"), "{text}");
    for header in ["host: server:1", "authorization: bearer t", "connection: close"] {
        assert!(text.contains(&format!("{header}\r\n")), "{text}");
    }
    server.client(SOON).post("http://node/cmdadd", b"{}".to_vec()).unwrap();
    let text = server.requests.recv_timeout(SOON).unwrap();
    assert!(text.starts_with("POST /cmdadd HTTP/1.1\r\n") && text.ends_with("\r\n\r\n{}"), "{text}");
    assert!(text.to_lowercase().contains("content-length: 2\r\n"), "{text}");

    let smuggled = server.client(SOON).get("http://server/", Some("t\r\nX: y"));
    assert!(matches!(smuggled, Err(HttpError::Protocol(_))), "{smuggled:?}");
    assert!(server.requests.try_recv().is_err());
}

#[test]
fn a_server_that_does_not_answer_is_given_up_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = Client::unix(UnixConnector(path), Duration::from_millis(30), 1);
    let error = client.get("http://server/", None).unwrap_err().to_string();
    assert_eq!(error, "no answer within 30ms");
}
