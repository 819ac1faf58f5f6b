//! The same frames against our server and the `h2` crate's: which streams are reset and how the connection ends, with the
//! codes. Where the two differ, the script says how: `h2` answers PROTOCOL_ERROR where RFC 9113 has a code of its own, ends
//! the connection for some errors of one stream, and reads over two kinds of malformed heads (§8.2.1, §8.5).

use std::time::Duration;

use bytes::Bytes;
use isthmus_http2::{Connection, Event, FrameHeader, HEADER_LEN, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const RST: u8 = 3;
const GOAWAY: u8 = 7;

/// A RST_STREAM with its stream and code, or a GOAWAY (stream 0) with its code.
type Ended = (u8, u32, u32);

struct Script {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    ours: &'static [Ended],
    /// What h2 does, where it is something else.
    h2: Option<&'static [Ended]>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&FrameHeader { length, kind, flags, stream }.encode()[..], payload].concat()
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(1, 4 | flags, stream, &block(fields))
}

fn connect(stream: u32) -> Vec<u8> {
    headers(stream, 0, &[(":method", "CONNECT"), (":authority", "a:1")])
}

fn with(extra: &[(&str, &str)]) -> Vec<u8> {
    headers(1, 0, &[&[(":method", "CONNECT"), (":authority", "a:1")], extra].concat())
}

fn script(name: &'static str, frames: &[Vec<u8>], ours: &'static [Ended]) -> Script {
    Script { name, frames: frames.to_vec(), ours, h2: None }
}

fn differs(name: &'static str, frames: &[Vec<u8>], ours: &'static [Ended], h2: &'static [Ended]) -> Script {
    Script { name, frames: frames.to_vec(), ours, h2: Some(h2) }
}

fn streams() -> Vec<Script> {
    let (end, window) =
        (|stream| frame(0, 1, stream, &[]), |stream, by: u32| frame(8, 0, stream, &by.to_be_bytes()));
    let reset = |stream| frame(3, 0, stream, &[0, 0, 0, 8]);
    vec![
        script("a connect", &[connect(1)], &[]),
        script("data and end", &[connect(1), frame(0, 0, 1, b"x"), end(1)], &[]),
        script("padded data", &[connect(1), frame(0, 8, 1, &[3, 9, 0, 0, 0])], &[]),
        script("too much padding", &[connect(1), frame(0, 8, 1, &[3, 0])], &[(GOAWAY, 0, 1)]),
        script("data on idle", &[frame(0, 0, 1, b"x")], &[(GOAWAY, 0, 1)]),
        script("data on 0", &[frame(0, 0, 0, b"x")], &[(GOAWAY, 0, 1)]),
        script("even stream", &[connect(2)], &[(GOAWAY, 0, 1)]),
        script("reset", &[connect(1), reset(1)], &[]),
        script("reset of idle", &[reset(1)], &[(GOAWAY, 0, 1)]),
        script("window of idle", &[window(1, 1)], &[(GOAWAY, 0, 1)]),
        script("window of 0 on the connection", &[window(0, 0)], &[(GOAWAY, 0, 1)]),
        script("overflow of the connection", &[window(0, 0x7fff_ffff)], &[(GOAWAY, 0, 3)]),
        script("overflow of a stream", &[connect(1), window(1, 0x7fff_ffff)], &[(RST, 1, 3)]),
        differs("window of 0 on a stream", &[connect(1), window(1, 0)], &[(RST, 1, 1)], &[(GOAWAY, 0, 1)]),
        differs(
            "data after end",
            &[connect(1), end(1), frame(0, 0, 1, b"x")],
            &[(RST, 1, 5)],
            &[(GOAWAY, 0, 1)],
        ),
        script("data after reset", &[connect(1), reset(1), frame(0, 0, 1, b"x")], &[(RST, 1, 5)]),
        script("trailers", &[connect(1), headers(1, 1, &[("a", "b")])], &[]),
        script("trailers without end", &[connect(1), headers(1, 0, &[("a", "b")])], &[(RST, 1, 1)]),
    ]
}

fn control() -> Vec<Script> {
    vec![
        script("unknown frame", &[frame(0x42, 0xff, 5, b"x")], &[]),
        script("unknown setting", &[frame(4, 0, 0, &[0xaa, 0, 0, 0, 0, 1])], &[]),
        script("priority", &[frame(2, 0, 1, &[0, 0, 0, 3, 1])], &[]),
        script("settings on a stream", &[frame(4, 0, 1, &[])], &[(GOAWAY, 0, 1)]),
        differs("settings length", &[frame(4, 0, 0, &[0; 5])], &[(GOAWAY, 0, 6)], &[(GOAWAY, 0, 1)]),
        differs("settings ack length", &[frame(4, 1, 0, &[0; 6])], &[(GOAWAY, 0, 6)], &[(GOAWAY, 0, 1)]),
        differs(
            "initial window",
            &[frame(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])],
            &[(GOAWAY, 0, 3)],
            &[(GOAWAY, 0, 1)],
        ),
        script("frame size", &[frame(4, 0, 0, &[0, 5, 0, 0, 0, 1])], &[(GOAWAY, 0, 1)]),
        script("enable push", &[frame(4, 0, 0, &[0, 2, 0, 0, 0, 2])], &[(GOAWAY, 0, 1)]),
        script("ping on a stream", &[frame(6, 0, 1, &[0; 8])], &[(GOAWAY, 0, 1)]),
        differs("ping length", &[frame(6, 0, 0, &[0; 7])], &[(GOAWAY, 0, 6)], &[(GOAWAY, 0, 1)]),
        script("goaway on a stream", &[frame(7, 0, 1, &[0; 8])], &[(GOAWAY, 0, 1)]),
        script("push promise", &[connect(1), frame(5, 4, 1, &[0, 0, 0, 2])], &[(GOAWAY, 0, 1)]),
        script("continuation alone", &[frame(9, 4, 1, &[])], &[(GOAWAY, 0, 1)]),
        script("interrupted block", &[frame(1, 0, 1, &[]), frame(6, 0, 0, &[0; 8])], &[(GOAWAY, 0, 1)]),
        script("too large", &[connect(1), frame(0, 0, 1, &[0; 16_385])], &[(GOAWAY, 0, 6)]),
        differs("index 0", &[frame(1, 4, 1, &[0x80])], &[(GOAWAY, 0, 9)], &[(GOAWAY, 0, 1)]),
        differs("index of nothing", &[frame(1, 4, 1, &[0xff, 0])], &[(GOAWAY, 0, 9)], &[(GOAWAY, 0, 1)]),
        differs(
            "size update above the limit",
            &[frame(1, 4, 1, &[0x3f, 0xe2, 0x1f])],
            &[(GOAWAY, 0, 9)],
            &[(GOAWAY, 0, 1)],
        ),
    ]
}

fn heads() -> Vec<Script> {
    let method = (":method", "CONNECT");
    vec![
        script("labels", &[with(&[("baggage", "a=b"), ("x", "")])], &[]),
        differs("upper case", &[with(&[("Baggage", "a")])], &[(RST, 1, 1)], &[(GOAWAY, 0, 1)]),
        script("connection", &[with(&[("connection", "close")])], &[(RST, 1, 1)]),
        script("transfer-encoding", &[with(&[("transfer-encoding", "chunked")])], &[(RST, 1, 1)]),
        script("te", &[with(&[("te", "gzip")])], &[(RST, 1, 1)]),
        script("te trailers", &[with(&[("te", "trailers")])], &[]),
        differs("line feed", &[with(&[("a", "b\nc")])], &[(RST, 1, 1)], &[(GOAWAY, 0, 1)]),
        differs("unknown pseudo header", &[with(&[(":x", "y")])], &[(RST, 1, 1)], &[(GOAWAY, 0, 1)]),
        script("status in a request", &[with(&[(":status", "200")])], &[(RST, 1, 1)]),
        script(
            "late pseudo header",
            &[headers(1, 0, &[method, ("a", "b"), (":authority", "a:1")])],
            &[(RST, 1, 1)],
        ),
        script("duplicate", &[headers(1, 0, &[method, method, (":authority", "a:1")])], &[(RST, 1, 1)]),
        script("path", &[with(&[(":path", "/")])], &[(RST, 1, 1)]),
        script("no method", &[headers(1, 0, &[(":authority", "a:1")])], &[(RST, 1, 1)]),
        script("no authority, which the caller refuses", &[headers(1, 0, &[method])], &[]),
        differs("space before a value", &[with(&[("a", " b")])], &[(RST, 1, 1)], &[]),
    ]
}

/// The endings among frames.
fn endings(mut bytes: &[u8]) -> Vec<Ended> {
    let mut found = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::parse(*header);
        let Some((payload, behind)) = rest.split_at_checked(header.length as usize) else { break };
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match header.kind {
            RST => found.push((RST, header.stream, number(0))),
            GOAWAY => found.push((GOAWAY, 0, number(4))),
            _ => {}
        }
        bytes = behind;
    }
    found
}

fn ours(input: &[u8]) -> Vec<Ended> {
    let mut server = Connection::server(Settings::default());
    let mut at = 0;
    while let Ok(Some(event)) = server.receive(input, &mut at) {
        if let Event::Request { stream, .. } = event {
            server.send_response(stream, 200, &[], false).unwrap();
        }
    }
    endings(server.output())
}

async fn h2(input: &[u8]) -> Vec<Ended> {
    let (mut client, io) = duplex(1 << 20);
    let serve = async {
        let mut builder = h2::server::Builder::new();
        builder.max_header_list_size(65_536);
        let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
        let mut held = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            held.push((request, respond.send_response(http::Response::new(()), false)));
        }
    };
    let talk = async {
        client.write_all(input).await.unwrap();
        let mut output = Vec::new();
        // The clock is paused: this ends once nothing more happens.
        let all = client.read_to_end(&mut output);
        let _ = tokio::time::timeout(Duration::from_secs(1), all).await;
        drop(client);
        endings(&output)
    };
    tokio::join!(serve, talk).1
}

#[tokio::test(start_paused = true)]
async fn the_same_frames_have_the_same_end() {
    let mut wrong = Vec::new();
    for script in [streams(), control(), heads()].into_iter().flatten() {
        let mut input = [PREFACE, &frame(4, 0, 0, &[])].concat();
        input.extend(script.frames.concat());
        let (ours, h2) = (ours(&input), h2(&input).await);
        let expected = script.h2.unwrap_or(script.ours);
        if (ours.as_slice(), h2.as_slice()) != (script.ours, expected) {
            wrong.push(format!("{}: ours {ours:?}, h2 {h2:?}", script.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
