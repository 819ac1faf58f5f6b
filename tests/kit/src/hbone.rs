//! An HBONE peer that is scripted frame by frame, as client or as server: bytes in, bytes out, no HTTP/2 library.
//!
//! It acknowledges nothing and grants no flow-control credit unless the test does; what the peer under test sends is
//! compared with the reference's bytes.

pub mod client;
pub mod hpack;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The connection preface of a client (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 §6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
}

/// Flags of frames.
pub mod flag {
    /// Acknowledges SETTINGS or PING.
    pub const ACK: u8 = 1;
    /// The sender's half of the stream is over.
    pub const END_STREAM: u8 = 1;
    /// The header block is complete.
    pub const END_HEADERS: u8 = 4;
}

/// What ztunnel sends as a client's settings: ENABLE_PUSH 0, INITIAL_WINDOW_SIZE 4 MiB, MAX_FRAME_SIZE 1 MiB,
/// MAX_HEADER_LIST_SIZE 16384.
pub const ZTUNNEL_CLIENT_SETTINGS: &str = "000200000000 000400400000 000500100000 000600004000";
/// What ztunnel sends as a server's settings: MAX_CONCURRENT_STREAMS 200, INITIAL_WINDOW_SIZE 4 MiB, MAX_FRAME_SIZE
/// 1 MiB, MAX_HEADER_LIST_SIZE 65536.
pub const ZTUNNEL_SERVER_SETTINGS: &str = "0003000000c8 000400400000 000500100000 000600010000";

/// Longer than any timer of a peer under test, so that a paused clock reaches the peer's first.
const PATIENCE: Duration = Duration::from_secs(120);

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream, 0 for the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, flags, stream, payload } = self;
        write!(f, "frame(type {kind} flags {flags:#x} stream {stream}: {} bytes", payload.len())?;
        if payload.len() <= 64 {
            write!(f, " {payload:02x?}")?;
        }
        f.write_str(")")
    }
}

/// A peer over any byte stream.
pub struct HbonePeer<S> {
    io: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> HbonePeer<S> {
    /// A client: sends the preface and ztunnel's settings, nothing else.
    pub async fn client(io: S) -> Result<Self> {
        let mut peer = Self { io };
        peer.io.write_all(PREFACE).await?;
        peer.send(kind::SETTINGS, 0, 0, &hex(ZTUNNEL_CLIENT_SETTINGS)).await?;
        Ok(peer)
    }

    /// A server: checks the preface, then sends ztunnel's settings, nothing else.
    pub async fn server(io: S) -> Result<Self> {
        Self::server_with(io, ZTUNNEL_SERVER_SETTINGS).await
    }

    /// A server with settings of its own, in hex.
    pub async fn server_with(io: S, settings: &str) -> Result<Self> {
        let mut peer = Self { io };
        let mut preface = [0; 24];
        tokio::time::timeout(PATIENCE, peer.io.read_exact(&mut preface)).await.context("no preface")??;
        ensure!(preface == PREFACE, "not the preface: {preface:02x?}");
        peer.send(kind::SETTINGS, 0, 0, &hex(settings)).await?;
        Ok(peer)
    }

    /// A peer on a connection whose prefaces have been exchanged.
    pub fn resumed(io: S) -> Self {
        Self { io }
    }

    /// Sends one frame.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let len = u32::try_from(payload.len())?.to_be_bytes();
        let mut frame = vec![len[1], len[2], len[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await?;
        Ok(())
    }

    /// The next frame; `None` when the connection was closed between frames.
    pub async fn recv(&mut self) -> Result<Option<Frame>> {
        tokio::time::timeout(PATIENCE, self.read()).await.context("no frame within the time limit")?
    }

    async fn read(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        if let Err(error) = self.io.read_exact(&mut head).await {
            let gone = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
            return if gone.contains(&error.kind()) { Ok(None) } else { Err(error.into()) };
        }
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len as usize];
        self.io.read_exact(&mut payload).await?;
        Ok(Some(Frame { kind: head[3], flags: head[4], stream, payload }))
    }

    /// The next frame of one type, on any stream; frames of other types are skipped.
    pub async fn next(&mut self, kind: u8) -> Result<Frame> {
        loop {
            let frame =
                self.recv().await?.with_context(|| format!("closed before a frame of type {kind}"))?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// The next frame that concerns streams; the connection's own (SETTINGS, PING, WINDOW_UPDATE) are skipped.
    pub async fn next_of_streams(&mut self) -> Result<Frame> {
        loop {
            let frame = self.recv().await?.context("closed before a frame of a stream")?;
            if !matches!(frame.kind, kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE) {
                return Ok(frame);
            }
        }
    }

    /// Reads to the end of the connection and returns the frames.
    pub async fn rest(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.recv().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Sends a header block, as literals without Huffman coding.
    pub async fn headers(&mut self, stream: u32, headers: &[(&str, &str)], end: bool) -> Result<()> {
        let flags = flag::END_HEADERS | if end { flag::END_STREAM } else { 0 };
        self.send(kind::HEADERS, flags, stream, &hpack::encode(headers)).await
    }

    /// Sends DATA.
    pub async fn data(&mut self, stream: u32, data: &[u8], end: bool) -> Result<()> {
        self.send(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, data).await
    }

    /// Sends RST_STREAM.
    pub async fn reset(&mut self, stream: u32, code: u32) -> Result<()> {
        self.send(kind::RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    /// Sends GOAWAY.
    pub async fn goaway(&mut self, last_stream: u32, code: u32) -> Result<()> {
        let payload = [last_stream.to_be_bytes(), code.to_be_bytes()].concat();
        self.send(kind::GOAWAY, 0, 0, &payload).await
    }

    /// Grants flow-control credit.
    pub async fn window_update(&mut self, stream: u32, bytes: u32) -> Result<()> {
        self.send(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await
    }

    /// Acknowledges the peer's settings.
    pub async fn ack_settings(&mut self) -> Result<()> {
        self.send(kind::SETTINGS, flag::ACK, 0, &[]).await
    }

    /// The byte stream.
    pub fn into_inner(self) -> S {
        self.io
    }
}

impl Frame {
    /// The header block as text.
    pub fn headers(&self) -> Result<Vec<(String, String)>> {
        ensure!(self.kind == kind::HEADERS, "no header block: {self:?}");
        hpack::decode(&self.payload)
    }

    /// Whether the sender's half ends with it.
    #[must_use]
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & flag::END_STREAM != 0
    }

    /// The code of a RST_STREAM, or of a GOAWAY.
    pub fn code(&self) -> Result<u32> {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        let bytes = self.payload.get(at..at + 4).context("too short for a code")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    /// The last stream of a GOAWAY.
    pub fn last_stream(&self) -> Result<u32> {
        ensure!(self.kind == kind::GOAWAY, "no GOAWAY: {self:?}");
        Ok(u32::from_be_bytes(self.payload.get(..4).context("too short")?.try_into()?))
    }
}

/// Bytes of hex text; blanks between them are allowed.
///
/// # Panics
/// When it is not hex.
#[must_use]
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "an odd number of hex digits");
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let byte = |pair: &[u8]| Some(value(pair[0])? << 4 | value(pair[1])?);
    digits.chunks(2).map(|pair| byte(pair).unwrap_or_else(|| panic!("{pair:?} is not hex"))).collect()
}
