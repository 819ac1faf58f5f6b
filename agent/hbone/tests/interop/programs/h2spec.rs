//! RFC 9113 and RFC 7541 by h2spec, strict cases included. It sends GET and POST only, so our server answers any request.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use isthmus_hbone::Settings;
use isthmus_http2::{self as http2, Event};
use isthmus_rt::task::Tasks;

use super::{BODY, answer_any, output};
use crate::ours;
use crate::tls::TestTls;

/// Cases that fail, by section and title, each with the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("generic/5", "Sends a dynamic table size update", TABLE),
    ("generic/5", "Sends multiple dynamic table size update", TABLE),
    ("http2/6.10", "Sends multiple CONTINUATION frames preceded by a HEADERS frame", TABLE),
    ("http2/5.3.1", "Sends HEADERS frame that depend on itself", PRIORITY),
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself", PRIORITY),
    (
        "http2/8.1.2.6",
        "Sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload \
         length",
        LENGTH,
    ),
    (
        "http2/8.1.2.6",
        "Sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple \
         DATA frames payload length",
        LENGTH,
    ),
];
const TABLE: &str = "it uses a dynamic table although our SETTINGS_HEADER_TABLE_SIZE is 0";
const PRIORITY: &str = "RFC 9113 §5.3 drops the priorities of RFC 7540: they are read over";
const LENGTH: &str = "a CONNECT has no content (RFC 9110 §9.3.6), so that its length is not checked";

/// One case of the report.
#[derive(Debug, PartialEq, Eq)]
struct Case {
    section: String,
    title: String,
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

fn program() -> PathBuf {
    let path = std::env::var_os("ISTHMUS_H2SPEC").map(PathBuf::from);
    let path = path.expect("ISTHMUS_H2SPEC does not name h2spec's program");
    assert!(path.is_file(), "ISTHMUS_H2SPEC: {} is not a file", path.display());
    path
}

/// The value of an attribute of an XML element.
fn attribute(element: &str, name: &str) -> String {
    let value = element.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    let (value, _) = value.unwrap_or_else(|| panic!("no {name} in {element}"));
    value
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// Reads a JUnit report.
fn cases(report: &str) -> Vec<Case> {
    let elements = report.split("<testcase").skip(1);
    let case = |element: &str| {
        let element = element.split("</testcase>").next().unwrap();
        let outcome = match () {
            () if element.contains("<failure>") || element.contains("<error>") => Outcome::Failed,
            () if element.contains("<skipped>") => Outcome::Skipped,
            () => Outcome::Passed,
        };
        Case { section: attribute(element, "package"), title: attribute(element, "classname"), outcome }
    };
    elements.map(case).collect()
}

/// Runs all cases against a server and compares what fails with the exceptions.
async fn check(address: SocketAddr, more: &[&str], is_exception: impl Fn(&str) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.xml");
    let mut command = Command::new(program());
    command.args(["--strict", "--timeout", "2", "--host", "127.0.0.1"]).args(more);
    command.arg("--port").arg(address.port().to_string()).arg("--junit-report").arg(&report);
    let (_, text) = output(command).await;
    let cases = cases(&std::fs::read_to_string(&report).expect(&text));
    let exceptions: Vec<_> = EXCEPTIONS.iter().filter(|(_, _, reason)| is_exception(reason)).collect();
    let is_exception = |case: &Case| {
        exceptions.iter().any(|(section, title, _)| *section == case.section && *title == case.title)
    };
    let of = |outcome| cases.iter().filter(move |case| case.outcome == outcome);
    let [passed, failed, skipped] =
        [Outcome::Passed, Outcome::Failed, Outcome::Skipped].map(|one| of(one).count());
    println!("{} cases: {passed} passed, {failed} failed, {skipped} skipped", cases.len());
    assert!(cases.len() >= 146, "{text}");
    let bad: Vec<&Case> =
        cases.iter().filter(|case| (case.outcome != Outcome::Passed) != is_exception(case)).collect();
    assert!(bad.is_empty(), "neither passed nor excepted, or passed though excepted: {bad:#?}\n{text}");
    for (section, title, reason) in exceptions {
        println!("exception: {section}: {title}: {reason}");
    }
}

#[tokio::test]
async fn h2spec_passes_over_a_tunnel_but_for_named_exceptions() {
    let (made, tasks) = (TestTls::new(), Tasks::new("test"));
    // h2spec takes the default for the largest frame.
    let settings = Settings { frame_size: 16_384, ..Settings::default() };
    let address = ours::listen(&made.server, &settings, &tasks, answer_any(&tasks)).await;
    check(address, &["--tls", "--insecure"], |_| true).await;
}

/// With a dynamic table, which a tunnel's settings do not have, none of its cases is an exception.
#[tokio::test]
async fn h2spec_passes_with_a_dynamic_table() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            // The client closes as it likes.
            std::thread::spawn(move || drop(serve_connection(tcp)));
        }
    });
    check(address, &[], |reason| reason != TABLE).await;
}

/// Answers any request of one connection without TLS.
fn serve_connection(mut tcp: TcpStream) -> std::io::Result<()> {
    let settings = http2::Settings { header_table_size: 4096, ..http2::Settings::default() };
    let mut connection = http2::Connection::server(settings);
    let (mut unsent, mut buffer) = (BTreeMap::<http2::StreamId, &[u8]>::new(), vec![0; 65_536]);
    loop {
        let mut out = Vec::new();
        unsent.retain(|stream, body| !send(&mut connection, *stream, body, &mut out));
        flush(&mut connection, &mut out);
        tcp.write_all(&out)?;
        if connection.error().is_some() {
            return tcp.shutdown(Shutdown::Both);
        }
        let count = tcp.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut at = 0;
        while let Ok(Some(event)) = connection.receive(&buffer[..count], &mut at) {
            match event {
                Event::Request { stream, .. } => {
                    // The client may have reset it in the same bytes.
                    let _ = connection.send_response(stream, 200, &[], false);
                    unsent.insert(stream, BODY);
                }
                Event::Data { stream, range } => {
                    connection.grant(stream, u32::try_from(range.len()).unwrap());
                }
                Event::Reset { stream, .. } => drop(unsent.remove(&stream)),
                _ => {}
            }
        }
    }
}

/// Sends what there is credit for; true at the end.
fn send(
    connection: &mut http2::Connection,
    stream: http2::StreamId,
    body: &mut &[u8],
    out: &mut Vec<u8>,
) -> bool {
    loop {
        let count = connection.reserve_data(stream, body.len());
        let (part, rest) = body.split_at(count);
        if part.is_empty() && !rest.is_empty() {
            return false;
        }
        flush(connection, out);
        let Ok(header) = connection.data_header(stream, count, rest.is_empty()) else { return true };
        out.extend([&header[..], part].concat());
        *body = rest;
        if rest.is_empty() {
            return true;
        }
    }
}

fn flush(connection: &mut http2::Connection, out: &mut Vec<u8>) {
    out.extend_from_slice(connection.output());
    connection.consumed(connection.output().len());
}
