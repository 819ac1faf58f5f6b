//! Arbitrary bytes on a tunnel's socket: before the handshake is finished, behind it, and inside records that decrypt.

use std::sync::{Arc, LazyLock};

use isthmus_fuzz::Choices;
use isthmus_record::handshake::{Handshaker, Progress};
use isthmus_record::{
    HEADER_LEN, MAX_PAYLOAD, MAX_RECORD, OVERHEAD, Opened, Opener, OpenerParts, PartialMessage, Role, Sealer,
    SealerParts, Suite, TrafficSecret,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::ResolvesServerCertUsingSni;

fn secret(suite: Suite) -> TrafficSecret {
    TrafficSecret::new(suite, &[7; 48][..suite.secret_len()]).unwrap_or_else(|error| panic!("{error}"))
}

fn pair(choices: &mut Choices<'_>) -> (Sealer, Opener) {
    let suite = Suite::ALL[usize::from(choices.byte() % 3)];
    let role = if choices.rarely(2) { Role::Server } else { Role::Client };
    let (sequence, partial) = (u64::from(choices.number()), PartialMessage::default());
    let sealer = Sealer::from_parts(SealerParts { secret: secret(suite), sequence, closed: false });
    let parts =
        OpenerParts { secret: secret(suite), sequence, role, partial, idle_records: 0, closed: false };
    let pair = sealer.and_then(|sealer| Ok((sealer, Opener::from_parts(parts)?)));
    pair.unwrap_or_else(|error| panic!("{error}"))
}

/// Opens what lies in `buffer`, record by record, and returns whether that closed the opener: then nothing opens.
fn open_all(opener: &mut Opener, buffer: &mut [u8]) -> bool {
    let mut rest = &mut buffer[..];
    let mut closed = false;
    while let Ok(Some(len)) = Opener::record_len(rest) {
        assert!((OVERHEAD..=MAX_RECORD).contains(&len));
        if rest.len() < len {
            break;
        }
        let (record, after) = rest.split_at_mut(len);
        let opened = opener.open(record);
        assert!(!closed || opened.is_err());
        match opened {
            Ok(Opened::Data(range)) => {
                assert!(range.start == HEADER_LEN && range.end <= len - 17 && range.len() <= MAX_PAYLOAD);
            }
            Ok(Opened::CloseNotify | Opened::Alert(_)) => closed = true,
            Ok(_) => {}
            Err(error) => {
                assert!(closed || error.is_peers_fault(), "{error}");
                closed = true;
            }
        }
        rest = after;
    }
    closed
}

#[test]
fn arbitrary_bytes_open_to_nothing() {
    bolero::check!().with_max_len(4096).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let (_, mut opener) = pair(&mut choices);
        open_all(&mut opener, &mut bytes.to_vec());
        // With a header that fits.
        let len = u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
        let (_, mut opener) = pair(&mut Choices::new(bytes));
        open_all(&mut opener, &mut [&[23, 3, 3, len[0], len[1]], bytes].concat());
    });
}

/// Records of an honest sealer, some of them damaged.
#[test]
fn damaged_records_open_to_nothing() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let (mut sealer, mut opener) = pair(&mut choices);
        while !choices.is_over() {
            let mut record = match choices.byte() % 8 {
                0 => sealer.key_update(choices.rarely(2)).map(Vec::from),
                1 if choices.rarely(8) => sealer.close_notify().map(Vec::from),
                _ => {
                    let length = usize::from(choices.byte());
                    let payload = choices.bytes(length);
                    let mut record = [&[0; HEADER_LEN], payload, &[0; 17]].concat();
                    sealer.seal(&mut record).map(|()| record)
                }
            };
            let Ok(record) = &mut record else { return };
            if choices.rarely(16) {
                let at = usize::from(choices.byte()) % record.len();
                record[at] ^= choices.byte();
            }
            if choices.rarely(8) {
                let Ok(moved) = Opener::from_parts(opener.into_parts()) else {
                    panic!("a state that it left")
                };
                opener = moved;
            }
            if open_all(&mut opener, record) {
                return;
            }
        }
    });
}

static SERVER: LazyLock<ServerConfig> = LazyLock::new(|| {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap_or_else(|error| panic!("{error}"))
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()))
});

/// A client that knows no TLS, in pieces.
#[test]
fn arbitrary_bytes_are_no_handshake() {
    bolero::check!().with_max_len(1024).for_each(|bytes: &[u8]| {
        let Ok(mut server) = Handshaker::server(&SERVER) else { panic!("a configuration without faults") };
        let mut choices = Choices::new(bytes);
        let (mut input, mut output) = (Vec::new(), Vec::new());
        while !choices.is_over() {
            if choices.rarely(2) {
                let length = choices.byte();
                input.extend_from_slice(&[20 + choices.byte() % 4, 3, choices.byte() % 5, 0, length]);
            }
            let length = usize::from(choices.byte());
            input.extend_from_slice(choices.bytes(length));
            match server.step(&mut input, &mut output) {
                Ok(progress) => assert_eq!(progress, Progress::NeedInput),
                Err(_) => return,
            }
        }
    });
}
