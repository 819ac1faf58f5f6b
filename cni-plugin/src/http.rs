//! One HTTP/1.1 exchange over any blocking byte stream, with one deadline for all of it. Knows neither TLS nor what is
//! asked; the connection is not used again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// No header of an answer may be longer, and none may have more.
const MAX_LINE: u64 = 16 << 10;
const MAX_HEADERS: usize = 100;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// `GET` or `POST`.
    pub(crate) method: &'a str,
    /// Path and query.
    pub(crate) target: &'a str,
    /// The `Host` header.
    pub(crate) host: &'a str,
    /// Further headers.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// JSON, if there is a body.
    pub(crate) body: Option<&'a [u8]>,
    /// Longest body of the answer, in bytes.
    pub(crate) limit: u64,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The stream failed, or the deadline passed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer does not speak HTTP/1.1.
    #[error("bad HTTP answer: {0}")]
    Malformed(String),
    /// The body is too long.
    #[error("the answer's body is longer than {0} bytes")]
    TooLong(u64),
}

/// A socket whose every read and write ends at one deadline.
#[derive(Debug)]
pub(crate) struct Timed<S> {
    socket: S,
    until: Instant,
    limit: Duration,
}

/// Sockets that can be given timeouts.
pub(crate) trait Timeouts {
    /// Sets the longest wait of the next read and write.
    fn set(&self, timeout: Duration) -> io::Result<()>;
}

/// Sends a request and reads its answer.
///
/// # Errors
/// See [`HttpError`]; the status is not judged.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &Request<'_>) -> Result<Response, HttpError> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.target, request.host);
    for (name, value) in request.headers {
        if value.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err(HttpError::Malformed(format!("control character in request header {name}")));
        }
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("Accept: application/json\r\nConnection: close\r\n");
    if let Some(body) = request.body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(request.body.unwrap_or_default());
    stream.write_all(&bytes)?;
    stream.flush()?;
    answer(&mut BufReader::new(stream), request.limit)
}

fn answer(stream: &mut impl BufRead, limit: u64) -> Result<Response, HttpError> {
    loop {
        let status = status_line(&line(stream)?)?;
        let framing = headers(stream)?;
        match status {
            // Interim answers come before the one that counts.
            100..=199 => {}
            204 | 304 => return Ok(Response { status, body: Vec::new() }),
            _ => return Ok(Response { status, body: body(stream, &framing, limit)? }),
        }
    }
}

/// How the end of a body is found.
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

fn line(stream: &mut impl BufRead) -> Result<String, HttpError> {
    let mut bytes = Vec::new();
    stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    match bytes.pop() {
        Some(b'\n') => {}
        None => {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer's end").into());
        }
        Some(_) => return Err(HttpError::Malformed("a line is cut off or too long".to_owned())),
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| HttpError::Malformed("a line is not text".to_owned()))
}

fn status_line(line: &str) -> Result<u16, HttpError> {
    let malformed = || HttpError::Malformed(format!("status line {line:?}"));
    let rest = line.strip_prefix("HTTP/1.").ok_or_else(malformed)?;
    let status = rest.split(' ').nth(1).ok_or_else(malformed)?;
    status.parse().ok().filter(|status| (100..600).contains(status)).ok_or_else(malformed)
}

fn headers(stream: &mut impl BufRead) -> Result<Framing, HttpError> {
    let mut framing = Framing::UntilClosed;
    for _ in 0..MAX_HEADERS {
        let line = line(stream)?;
        if line.is_empty() {
            return Ok(framing);
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| HttpError::Malformed(format!("header {line:?}")))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Malformed(format!("transfer encoding {value:?}")));
            }
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("content-length") && !matches!(framing, Framing::Chunked) {
            let length =
                value.parse().map_err(|_| HttpError::Malformed(format!("content length {value:?}")))?;
            framing = Framing::Length(length);
        }
    }
    Err(HttpError::Malformed(format!("more than {MAX_HEADERS} headers")))
}

fn body(stream: &mut impl BufRead, framing: &Framing, limit: u64) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    match *framing {
        Framing::Length(length) => exactly(stream, length, limit, &mut body)?,
        Framing::UntilClosed => {
            stream.take(limit + 1).read_to_end(&mut body)?;
            if body.len() as u64 > limit {
                return Err(HttpError::TooLong(limit));
            }
        }
        Framing::Chunked => loop {
            let size = line(stream)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16)
                .map_err(|_| HttpError::Malformed(format!("chunk size {digits:?}")))?;
            if size == 0 {
                // Trailers are headers that nobody asked for.
                headers(stream)?;
                break;
            }
            exactly(stream, size, limit, &mut body)?;
            if !line(stream)?.is_empty() {
                return Err(HttpError::Malformed("no end of line after a chunk".to_owned()));
            }
        },
    }
    Ok(body)
}

/// Appends exactly `length` bytes, as long as the whole stays within the limit.
fn exactly(stream: &mut impl BufRead, length: u64, limit: u64, body: &mut Vec<u8>) -> Result<(), HttpError> {
    if (body.len() as u64).saturating_add(length) > limit {
        return Err(HttpError::TooLong(limit));
    }
    let read = stream.take(length).read_to_end(body)? as u64;
    if read < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the body's end").into());
    }
    Ok(())
}

// === impl Timed ===

impl<S: Timeouts> Timed<S> {
    /// Bounds what happens on `socket` from now on; `limit` is named when it is exceeded.
    pub(crate) fn new(socket: S, until: Instant, limit: Duration) -> Self {
        Self { socket, until, limit }
    }

    fn arm(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.late()) } else { self.socket.set(left) }
    }

    /// A socket timeout shows as `WouldBlock`, which would read as nonsense in an error.
    fn explain(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            _ => error,
        }
    }

    fn late(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.limit))
    }
}

impl<S: Timeouts + Read> Read for Timed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        self.socket.read(buffer).map_err(|error| self.explain(error))
    }
}

impl<S: Timeouts + Write> Write for Timed<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.arm()?;
        self.socket.write(buffer).map_err(|error| self.explain(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl Timeouts for TcpStream {
    fn set(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl Timeouts for UnixStream {
    fn set(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

#[cfg(test)]
mod tests;
