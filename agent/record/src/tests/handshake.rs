//! The handshake's driver, with rustls' buffered connections at the other end.

use std::io::Write as _;

use rustls::HandshakeKind;
use rustls::crypto::aws_lc_rs;

use super::support::{Configs, Link, feed};
use crate::handshake::{HandshakeError, Handshaker, Progress};
use crate::{Opened, Opener, Role, Suite};

/// Both ends are ours. Bytes arrive in pieces of `piece`.
fn both(configs: &Configs, piece: usize) -> (Handshaker, Handshaker) {
    let (mut client, mut server) = (configs.ours(Role::Client), configs.ours(Role::Server));
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let at_client = step_in_pieces(&mut client, &mut to_client, &mut to_server, piece);
        let at_server = step_in_pieces(&mut server, &mut to_server, &mut to_client, piece);
        if (at_client, at_server) == (Progress::Done, Progress::Done) {
            assert!(to_client.is_empty() && to_server.is_empty());
            return (client, server);
        }
    }
    panic!("no end of the handshake");
}

fn step_in_pieces(end: &mut Handshaker, input: &mut Vec<u8>, output: &mut Vec<u8>, piece: usize) -> Progress {
    let arriving = std::mem::take(input);
    let mut progress = end.step(input, output).unwrap();
    for part in arriving.chunks(piece) {
        input.extend_from_slice(part);
        progress = end.step(input, output).unwrap();
    }
    progress
}

#[test]
fn both_ends_of_ours_agree_however_the_bytes_arrive() {
    for suite in Suite::ALL {
        let configs = Configs::new(suite);
        for piece in [1, 2, 3, 5, 7, 100, usize::MAX] {
            let (client, server) = both(&configs, piece);
            assert_eq!((client.role(), server.role()), (Role::Client, Role::Server));
            assert_eq!(client.state().alpn_protocol(), Some(&b"h2"[..]));
            let (mut client, mut server) = (client.into_session().unwrap(), server.into_session().unwrap());
            assert_eq!((client.suite, server.suite), (suite, suite));
            assert_eq!(
                (client.alpn.as_deref(), server.alpn.as_deref()),
                (Some(&b"h2"[..]), Some(&b"h2"[..]))
            );
            assert_eq!(client.peer_certificates, std::slice::from_ref(&configs.server_cert));
            assert_eq!(server.peer_certificates, std::slice::from_ref(&configs.client_cert));
            let mut record = super::support::seal(&mut client.sealer, b"to server");
            assert_eq!(super::support::open(&mut server.opener, &mut record).unwrap(), b"to server");
            let mut record = super::support::seal(&mut server.sealer, b"to client");
            assert_eq!(super::support::open(&mut client.opener, &mut record).unwrap(), b"to client");
        }
    }
}

/// A flight is split in two at each of its bytes.
#[test]
fn flights_may_be_split_at_each_byte() {
    let configs = Configs::new(Suite::Aes128GcmSha256);
    let mut split = 0;
    loop {
        let (mut client, mut server) = (configs.ours(Role::Client), configs.ours(Role::Server));
        let (mut hello, mut flight, mut finish) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(client.step(&mut Vec::new(), &mut hello).unwrap(), Progress::NeedInput);
        assert_eq!(server.step(&mut hello, &mut flight).unwrap(), Progress::NeedInput);
        let cut = split.min(flight.len());
        let (mut input, rest) = (flight[..cut].to_vec(), &flight[cut..]);
        let progress = client.step(&mut input, &mut finish).unwrap();
        assert_eq!(progress == Progress::Done, rest.is_empty());
        input.extend_from_slice(rest);
        assert_eq!(client.step(&mut input, &mut finish).unwrap(), Progress::Done);
        assert_eq!(server.step(&mut finish, &mut Vec::new()).unwrap(), Progress::Done);
        server.into_session().unwrap();
        if rest.is_empty() {
            return;
        }
        // Signatures are slow: every byte of headers and of the last records, some in between.
        split += if split > 20 && flight.len() - split > 200 { 13 } else { 1 };
    }
}

#[test]
fn a_retry_of_the_hello_and_messages_over_many_records_pass() {
    let mut retry = Configs::with_server_groups(Suite::Aes256GcmSha384, &[aws_lc_rs::kx_group::SECP384R1]);
    for fragment in [None, Some(32), Some(100), Some(1000)] {
        retry.client.max_fragment_size = fragment;
        retry.server.max_fragment_size = fragment;
        for role in [Role::Client, Role::Server] {
            let mut link = Link::new(&retry, role);
            assert_eq!(link.send(b"data"), b"data");
            link.answer(b"more");
            assert_eq!(link.receive().0, b"more");
        }
        let (client, _) = both(&retry, 7);
        assert_eq!(client.state().handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
    }
}

#[test]
fn data_behind_the_handshake_is_left_to_the_record_layer() {
    // The client's data arrives together with its part of the handshake.
    let configs = Configs::new(Suite::Aes256GcmSha384);
    let (mut server, mut client) = (configs.ours(Role::Server), configs.peer(Role::Server));
    let (mut input, mut output) = (Vec::new(), Vec::new());
    client.writer().write_all(b"early bird").unwrap();
    client.write_tls(&mut input).unwrap();
    assert_eq!(server.step(&mut input, &mut output).unwrap(), Progress::NeedInput);
    feed(&mut client, &output).unwrap();
    client.refresh_traffic_keys().unwrap();
    client.writer().write_all(b"second").unwrap();
    while client.wants_write() {
        client.write_tls(&mut input).unwrap();
    }
    input.extend_from_slice(&[23, 3]);
    assert_eq!(server.step(&mut input, &mut Vec::new()).unwrap(), Progress::Done);
    let mut session = server.into_session().unwrap();
    let mut opened = Vec::new();
    while let Some(len) = Opener::record_len(&input).unwrap() {
        let mut record: Vec<u8> = input.drain(..len).collect();
        opened.push(match session.opener.open(&mut record).unwrap() {
            Opened::Data(range) => record[range].to_vec(),
            Opened::KeyUpdate { .. } => b"update".to_vec(),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(opened, [&b"early bird"[..], b"update", b"second"]);
    assert_eq!(input, [23, 3]);
}

#[test]
fn there_is_no_step_and_no_session_after_a_failure_or_before_the_end() {
    let configs = Configs::new(Suite::Aes128GcmSha256);
    let mut ours = configs.ours(Role::Server);
    ours.step(&mut b"GET / HTTP/1.1".to_vec(), &mut Vec::new()).unwrap_err();
    assert!(matches!(ours.step(&mut Vec::new(), &mut Vec::new()), Err(HandshakeError::Failed)));
    for ours in [ours, configs.ours(Role::Client)] {
        assert!(matches!(ours.into_session(), Err(HandshakeError::NotDone)));
    }
}

#[test]
fn a_client_without_the_right_certificate_is_refused_with_an_alert() {
    let (configs, other) = (Configs::new(Suite::Aes128GcmSha256), Configs::new(Suite::Aes128GcmSha256));
    let mut client = configs.peer(Role::Server);
    let mut server = Handshaker::server(&{
        // This server trusts other clients, and has the certificate that the client trusts.
        let mut config = other.server.clone();
        config.cert_resolver = configs.server.cert_resolver.clone();
        config
    })
    .unwrap();
    let (mut input, mut output) = (Vec::new(), Vec::new());
    client.write_tls(&mut input).unwrap();
    assert_eq!(server.step(&mut input, &mut output).unwrap(), Progress::NeedInput);
    feed(&mut client, &output).unwrap();
    output.clear();
    while client.wants_write() {
        client.write_tls(&mut input).unwrap();
    }
    let error = server.step(&mut input, &mut output).unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(rustls::Error::InvalidCertificate(_))), "{error:?}");
    let error = feed(&mut client, &output).unwrap_err();
    assert!(matches!(error, rustls::Error::AlertReceived(_)), "{error:?}");
}

#[test]
fn a_peer_that_does_not_speak_tls_is_an_error() {
    let configs = Configs::new(Suite::Aes128GcmSha256);
    let cases: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 64], &[22, 3, 1, 255, 255, 1]];
    for bytes in cases {
        for role in [Role::Client, Role::Server] {
            let mut ours = configs.ours(role);
            assert_eq!(ours.step(&mut Vec::new(), &mut Vec::new()).unwrap(), Progress::NeedInput);
            let mut output = Vec::new();
            let error = ours.step(&mut bytes.to_vec(), &mut output).unwrap_err();
            assert!(matches!(error, HandshakeError::Tls(_)), "{error:?}");
            assert!(matches!(output[..], [21, 3, _, 0, 2, 2, _]), "an alert: {output:?}");
        }
    }
}

#[test]
fn a_tampered_flight_fails_and_never_panics() {
    let configs = Configs::new(Suite::Aes128GcmSha256);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        let (mut client, mut server) = (configs.ours(Role::Client), configs.ours(Role::Server));
        let (mut hello, mut flight) = (Vec::new(), Vec::new());
        assert_eq!(client.step(&mut Vec::new(), &mut hello).unwrap(), Progress::NeedInput);
        assert_eq!(server.step(&mut hello, &mut flight).unwrap(), Progress::NeedInput);
        let at = random.usize(..flight.len());
        if versions(&flight).contains(&at) {
            continue;
        }
        flight[at] ^= 1 << random.u8(..8);
        let done = client.step(&mut flight.clone(), &mut Vec::new());
        assert!(!matches!(done, Ok(Progress::Done)), "{at} {flight:?}");
    }
}

/// Where the versions of the record headers are, which mean nothing: RFC 8446, section 5.1, has a reader ignore them.
fn versions(flight: &[u8]) -> Vec<usize> {
    let (mut at, mut versions) = (0, Vec::new());
    while let Some(&[_, _, _, high, low]) = flight[at..].first_chunk::<5>() {
        versions.extend([at + 1, at + 2]);
        at += 5 + usize::from(u16::from_be_bytes([high, low]));
    }
    versions
}

#[test]
fn a_configured_key_log_still_sees_the_secrets() {
    #[derive(Debug, Default)]
    struct Labels(std::sync::Mutex<Vec<String>>);
    impl rustls::KeyLog for Labels {
        fn log(&self, label: &str, _: &[u8], _: &[u8]) {
            self.0.lock().unwrap().push(label.to_owned());
        }
    }
    let labels = std::sync::Arc::new(Labels::default());
    let mut configs = Configs::new(Suite::Aes128GcmSha256);
    configs.client.key_log = labels.clone();
    Link::new(&configs, Role::Client);
    let seen = labels.0.lock().unwrap().clone();
    assert!(seen.contains(&"CLIENT_TRAFFIC_SECRET_0".to_owned()) && seen.len() >= 4, "{seen:?}");
}
