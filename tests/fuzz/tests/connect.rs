//! Arbitrary input of an authenticated peer on port 15008: HTTP/2 frames, and in them the heads of CONNECTs with their
//! authority, baggage, Forwarded and traceparent.

use isthmus_fuzz::Choices;
use isthmus_hbone::baggage::Baggage;
use isthmus_hbone::forwarded::Forwarded;
use isthmus_hbone::trace::TraceParent;
use isthmus_hbone::{Authority, Settings, server};
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_rt::drain;
use tokio::io::duplex;

const METHODS: [&str; 4] = ["CONNECT", "CONNECT", "CONNECT", "GET"];
const AUTHORITIES: [&str; 8] = [
    "10.0.0.1:80",
    "[fd00::1]:443",
    "web.a.svc.cluster.local:8080",
    "10.0.0.1",
    "[::1",
    ":80",
    "a:b@c:1",
    "host:99999",
];
const NAMES: [&str; 7] =
    ["baggage", "baggage", "forwarded", "traceparent", "x-forwarded-network", "x", ":protocol"];
const VALUES: [&str; 8] = [
    "k8s.cluster.name=east,k8s.namespace.name=a,k8s.deployment.name=web,service.name=web,service.version=v1",
    "cloud.region=r1 ; p=q , cloud.availability_zone=%zz,=,",
    "for=\"10.0.0.1:1234\";host=web.a.svc.cluster.local",
    "for=\"[fd00::1]:1\";host=\"\\\"",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-00000000000000000000000000000000-0000000000000000-00",
    "east",
    "",
];

/// A text that is mostly one of these, sometimes damaged, sometimes arbitrary.
fn text(choices: &mut Choices<'_>, of: &[&str]) -> String {
    let mut text = choices.name(of);
    if choices.rarely(4) {
        let cut = usize::from(choices.byte()) % (text.len() + 1);
        if text.is_char_boundary(cut) {
            text.truncate(cut);
        }
        text.extend(choices.bytes(4).iter().map(|byte| char::from(*byte)));
    }
    text
}

/// Checks that parsed values print as they were read.
fn labels(text: &str) {
    let baggage = Baggage::parse(text);
    let written = baggage.to_string();
    let again = Baggage::parse(&written);
    assert_eq!(baggage, again, "{text:?}");
    let forwarded = Forwarded::parse(text);
    assert_eq!(Forwarded::parse(&forwarded.to_string()), forwarded, "{text:?}");
    if let Some(trace) = TraceParent::parse(text) {
        assert_eq!(
            TraceParent::parse(&trace.to_string()).map(|trace| trace.trace_id()),
            Some(trace.trace_id())
        );
    }
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.to_string().parse(), Ok(authority), "{text:?}");
    }
}

#[test]
fn labels_are_texts() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        labels(&String::from_utf8_lossy(bytes));
        while !choices.is_over() {
            labels(&text(&mut choices, &[&VALUES[..], &AUTHORITIES[..]].concat()));
        }
    });
}

/// One connection: CONNECTs with mostly valid headers, and mostly invalid frames. The server must end when the client has
/// closed, whatever it sent, and accept no request that it could not parse.
async fn connection(bytes: &[u8]) {
    let (client, io) = duplex(1 << 16);
    let (_signal, watch) = drain::channel();
    let mut heads = Vec::new();
    let settings = Settings::default();
    let serve = server::serve(io, &settings, watch, |request| {
        heads.push(request.head.clone());
        // Dropping the stream resets it.
        match &request.head {
            Ok(head) => {
                let baggage = head.baggage.clone();
                drop(request.accept(baggage));
            }
            Err(bad) => {
                let status = bad.status();
                request.reject(status);
            }
        }
    });
    let talk = async {
        let mut choices = Choices::new(bytes);
        let Ok(mut peer) = HbonePeer::client(client).await else { return };
        let mut stream = 1_u32;
        while !choices.is_over() {
            let sent = if choices.rarely(4) {
                let (kind, flags, on) = (choices.byte() % 11, choices.byte(), choices.byte() % 4);
                peer.send(kind, flags, stream.saturating_sub(2 * u32::from(on)), choices.bytes(24)).await
            } else {
                let (method, authority) = (choices.name(&METHODS), text(&mut choices, &AUTHORITIES));
                let more = choices.some(3, |choices| (choices.name(&NAMES), text(choices, &VALUES)));
                let mut head = vec![(":method", method.as_str()), (":authority", authority.as_str())];
                head.extend(more.iter().map(|(name, value)| (name.as_str(), value.as_str())));
                let sent = peer.headers(stream, &head, choices.rarely(2)).await;
                stream += 2;
                sent
            };
            if sent.is_err() {
                return;
            }
        }
        // The server's last frames are read to the end.
        let _ = peer.send(kind::PING, 0, 0, &[0; 8]).await;
        while let Ok(Some(frame)) = peer.recv().await {
            if frame.kind == kind::GOAWAY || frame.kind == kind::PING {
                return;
            }
        }
    };
    let (_, ()) = tokio::join!(serve, talk);
    for head in heads.into_iter().flatten() {
        assert_eq!(head.authority.to_string().parse().as_ref(), Ok(&head.authority));
        assert!(head.traceparent.is_none_or(|text| TraceParent::parse(&text).is_some()));
        for text in [head.baggage, head.forwarded, head.forwarded_network].into_iter().flatten() {
            labels(&text);
        }
    }
}

#[test]
fn heads_are_frames() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let runtime = std::panic::AssertUnwindSafe(runtime);
    bolero::check!().with_max_len(512).for_each(move |bytes: &[u8]| runtime.block_on(connection(bytes)));
}
