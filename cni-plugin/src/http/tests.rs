use std::io::Cursor;

use super::*;

fn read(text: &str) -> Result<Response, HttpError> {
    answer(&mut Cursor::new(text.as_bytes().to_vec()), 16)
}

#[test]
fn bodies_end_in_three_ways() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", 200, "abc"),
        ("HTTP/1.1 500 X\r\n\r\nwhy", 500, "why"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;ext=1\r\nab\r\n1\r\nc\r\n0\r\nT: x\r\n\r\n",
            200,
            "abc",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 No\nContent-Length: 0\n\n", 404, ""),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", 204, ""),
    ];
    for (text, status, body) in cases {
        let got = read(text).unwrap();
        assert_eq!((got.status, got.body.as_slice()), (status, body.as_bytes()), "{text}");
    }
}

#[test]
fn what_is_not_http_is_an_error_that_says_so() {
    let cases = [
        ("", "closed before"),
        ("HTTP/2 200\r\n\r\n", "status line"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "status line"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "header"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "content length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "body's end"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n", "16 bytes"),
        ("HTTP/1.1 200 OK\r\n\r\n12345678901234567", "16 bytes"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer encoding"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "16 bytes"),
        ("HTTP/1.1 200 OK", "cut off"),
    ];
    for (text, named) in cases {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text:?}: {error}");
    }
}

#[test]
fn the_request_is_what_was_asked_and_nothing_can_be_smuggled_into_it() {
    /// Remembers what was written and answers nothing.
    #[derive(Default)]
    struct Sink(Vec<u8>);
    impl Read for &mut Sink {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }
    impl Write for &mut Sink {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(buffer);
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink::default();
    let request = Request {
        method: "POST",
        target: "/cmdadd",
        host: "unix",
        headers: &[("Authorization", "Bearer t")],
        body: Some(b"{}"),
        limit: 1,
    };
    assert!(exchange(&mut sink, &request).is_err());
    let text = String::from_utf8(std::mem::take(&mut sink.0)).unwrap();
    assert!(text.starts_with("POST /cmdadd HTTP/1.1\r\nHost: unix\r\nAuthorization: Bearer t\r\n"), "{text}");
    assert!(text.ends_with("Content-Length: 2\r\n\r\n{}"), "{text}");

    let smuggled = Request { headers: &[("Authorization", "t\r\nX: y")], ..request };
    assert!(exchange(&mut sink, &smuggled).unwrap_err().to_string().contains("Authorization"));
    assert!(sink.0.is_empty());
}

#[test]
fn a_silent_peer_is_given_up_at_the_deadline() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let limit = Duration::from_millis(30);
    let timed = Timed::new(ours, Instant::now() + limit, limit);
    let request = Request { method: "GET", target: "/", host: "x", headers: &[], body: None, limit: 1 };
    let error = exchange(timed, &request).unwrap_err().to_string();
    assert!(error.contains("no answer within 30ms"), "{error}");
}
