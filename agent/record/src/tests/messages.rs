//! Handshake messages and alerts after the handshake.

use super::support::{Forger, open, opener, seal, sealer};
use crate::{Alert, Error, Opened, Opener, OpenerParts, PartialMessage, Role, Suite, content};

const SUITE: Suite = Suite::Aes128GcmSha256;
const UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const REQUEST: [u8; 5] = [24, 0, 0, 1, 1];

/// A NewSessionTicket of `len` bytes without its header.
fn ticket(len: usize) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(len).unwrap().to_be_bytes();
    [vec![4, a, b, c], vec![0x44; len]].concat()
}

/// Opens handshake records of these contents, one after another, until one is an error.
fn open_all(role: Role, contents: &[&[u8]]) -> Vec<crate::Result<Opened>> {
    let mut forger = Forger::new(SUITE);
    let mut opener = opener(SUITE, role);
    let mut records = contents.iter().map(|content| forger.record(content::HANDSHAKE, content));
    let mut opened = Vec::new();
    for mut record in &mut records {
        opened.push(opener.open(&mut record));
        if opened.last().is_some_and(Result::is_err) {
            break;
        }
    }
    opened
}

#[test]
fn messages_may_be_whole_fragmented_or_several_in_a_record() {
    let two = [ticket(20), ticket(300)].concat();
    let mixed = [&ticket(14)[..], &REQUEST].concat();
    let split = [&ticket(30)[..20], &[&ticket(30)[20..], &UPDATE].concat()];
    let requested = |requested| Ok(Opened::KeyUpdate { requested });
    type Results<'a> = &'a [crate::Result<Opened>];
    let cases: [(&[&[u8]], Results<'_>); 8] = [
        (&[&UPDATE], &[requested(false)]),
        (&[&REQUEST], &[requested(true)]),
        (&[&ticket(200)], &[Ok(Opened::Ticket)]),
        (&[&two], &[Ok(Opened::Ticket)]),
        (&[&mixed], &[requested(true)]),
        (&split, &[Ok(Opened::Nothing), requested(false)]),
        (
            &[&REQUEST[..1], &REQUEST[1..4], &REQUEST[4..]],
            &[Ok(Opened::Nothing), Ok(Opened::Nothing), requested(true)],
        ),
        (&[&ticket(0xffff)[..16384], &[0x44; 16384]], &[Ok(Opened::Nothing), Ok(Opened::Nothing)]),
    ];
    for (contents, expected) in cases {
        assert_eq!(open_all(Role::Client, contents), expected);
    }
}

#[test]
fn messages_that_have_no_place_are_refused() {
    let after = [&UPDATE[..], &ticket(20)].concat();
    let cases: [(Role, &[u8], Error, Alert); 12] = [
        (Role::Client, &after, Error::AfterKeyUpdate, Alert::UNEXPECTED_MESSAGE),
        (Role::Client, &[24, 0, 0, 1, 0, 24], Error::AfterKeyUpdate, Alert::UNEXPECTED_MESSAGE),
        (Role::Client, &[24, 0, 0, 1, 2], Error::KeyUpdateRequest(2), Alert::ILLEGAL_PARAMETER),
        (Role::Client, &[24, 0, 0, 0], Error::MessageLength, Alert::DECODE_ERROR),
        (Role::Client, &[24, 0, 0, 2, 0, 0], Error::MessageLength, Alert::DECODE_ERROR),
        (Role::Client, &[4, 0, 0, 13], Error::MessageLength, Alert::DECODE_ERROR),
        (Role::Client, &[4, 1, 0, 0], Error::MessageLength, Alert::DECODE_ERROR),
        (Role::Server, &ticket(20), Error::UnexpectedMessage(4), Alert::UNEXPECTED_MESSAGE),
        // HelloRequest, ClientHello (renegotiation), CertificateRequest, Finished.
        (Role::Client, &[0, 0, 0, 0], Error::UnexpectedMessage(0), Alert::UNEXPECTED_MESSAGE),
        (Role::Server, &[1], Error::UnexpectedMessage(1), Alert::UNEXPECTED_MESSAGE),
        (Role::Client, &[13, 0, 0, 3, 0, 0, 0], Error::UnexpectedMessage(13), Alert::UNEXPECTED_MESSAGE),
        (Role::Client, &[20, 0, 0, 32], Error::UnexpectedMessage(20), Alert::UNEXPECTED_MESSAGE),
    ];
    for (role, content, error, alert) in cases {
        assert_eq!(open_all(role, &[content]), [Err(error)], "{content:?}");
        assert_eq!(error.alert(), alert);
    }
}

#[test]
fn nothing_may_interrupt_a_message_but_an_error() {
    let harmless = [
        (content::APPLICATION_DATA, &b"data"[..]),
        (content::APPLICATION_DATA, b""),
        (content::ALERT, &[1, 0]),
        (content::ALERT, &[1, 90]),
    ];
    for (kind, content) in harmless {
        let (mut forger, mut opener) = (Forger::new(SUITE), opener(SUITE, Role::Client));
        opener.open(&mut forger.record(content::HANDSHAKE, &ticket(20)[..10])).unwrap();
        assert_eq!(opener.open(&mut forger.record(kind, content)), Err(Error::Interrupted));
    }
    let (mut forger, mut opener) = (Forger::new(SUITE), opener(SUITE, Role::Client));
    opener.open(&mut forger.record(content::HANDSHAKE, &ticket(20)[..10])).unwrap();
    let opened = opener.open(&mut forger.record(content::ALERT, &[2, 80]));
    assert_eq!(opened, Ok(Opened::Alert(Alert::INTERNAL_ERROR)));
}

#[test]
fn key_updates_change_the_key_of_one_direction() {
    for suite in Suite::ALL {
        let (mut sealer, mut opener) = (sealer(suite), opener(suite, Role::Server));
        for round in 0..100_u8 {
            assert_eq!(open(&mut opener, &mut seal(&mut sealer, &[round])).unwrap(), [round]);
            let requested = round % 2 == 0;
            let mut record = sealer.key_update(requested).unwrap();
            assert_eq!(opener.open(&mut record), Ok(Opened::KeyUpdate { requested }));
        }
    }
}

#[test]
fn the_old_key_opens_nothing_after_an_update() {
    let (mut current, mut old, mut opener) = (sealer(SUITE), sealer(SUITE), opener(SUITE, Role::Server));
    opener.open(&mut current.key_update(false).unwrap()).unwrap();
    assert_eq!(opener.open(&mut seal(&mut old, b"data")), Err(Error::BadRecordMac));
}

#[test]
fn alerts_close_both_directions_of_their_sender() {
    let cases = [
        (Alert::CLOSE_NOTIFY, Opened::CloseNotify),
        (Alert::BAD_RECORD_MAC, Opened::Alert(Alert::BAD_RECORD_MAC)),
        (Alert(200), Opened::Alert(Alert(200))),
    ];
    for (alert, expected) in cases {
        let (mut sealer, mut opener) = (sealer(SUITE), opener(SUITE, Role::Server));
        let mut record = sealer.alert(alert).unwrap();
        assert_eq!(opener.open(&mut record), Ok(expected));
        assert_eq!(opener.open(&mut [0; 40]), Err(Error::Closed));
        assert_eq!(sealer.seal(&mut [0; 40]), Err(Error::Closed));
        assert_eq!(sealer.key_update(false), Err(Error::Closed));
        assert_eq!(sealer.close_notify(), Err(Error::Closed));
        assert!(sealer.into_parts().closed && opener.into_parts().closed);
    }
}

#[test]
fn user_canceled_is_no_end() {
    let (mut forger, mut opener) = (Forger::new(SUITE), opener(SUITE, Role::Server));
    assert_eq!(opener.open(&mut forger.record(content::ALERT, &[1, 90])), Ok(Opened::Nothing));
    assert_eq!(opener.open(&mut forger.record(content::ALERT, &[2, 0])), Ok(Opened::CloseNotify));
}

#[test]
fn a_partial_message_moves_with_the_session_and_an_impossible_one_is_refused() {
    let message = [&ticket(20)[..], &REQUEST].concat();
    for cut in 1..message.len() {
        let (mut forger, mut opener) = (Forger::new(SUITE), opener(SUITE, Role::Client));
        let mut records =
            [&message[..cut], &message[cut..]].map(|part| forger.record(content::HANDSHAKE, part));
        opener.open(&mut records[0]).unwrap();
        let mut moved = Opener::from_parts(opener.into_parts()).unwrap();
        assert_eq!(moved.open(&mut records[1]), Ok(Opened::KeyUpdate { requested: true }));
    }
    let impossible = [
        PartialMessage { header: [4, 0, 0, 20], header_len: 5, missing: 1 },
        PartialMessage { header: [4, 0, 0, 20], header_len: 4, missing: 21 },
        PartialMessage { header: [4, 0, 0, 20], header_len: 4, missing: 0 },
        PartialMessage { header: [4, 0, 0, 1], header_len: 4, missing: 1 },
        PartialMessage { header: [4, 0, 0, 20], header_len: 2, missing: 0 },
        PartialMessage { header: [4, 0, 0, 0], header_len: 2, missing: 5 },
        PartialMessage { header: [1, 0, 0, 0], header_len: 1, missing: 0 },
        PartialMessage { header: [0, 0, 0, 0], header_len: 0, missing: 9 },
    ];
    for partial in impossible {
        let parts = OpenerParts { partial, ..opener(SUITE, Role::Client).into_parts() };
        assert!(matches!(Opener::from_parts(parts), Err(Error::MessageLength)), "{partial:?}");
    }
}
