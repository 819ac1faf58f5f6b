//! Records one by one: sizes, headers, tampering, padding, order.

use super::support::{Forger, open, opener, seal, sealer};
use crate::{
    Alert, Error, HEADER_LEN, MAX_PAYLOAD, MAX_RECORD, OVERHEAD, Opened, Opener, Role, Suite, content,
};

/// Every size that is likely to be an edge.
fn sizes() -> impl Iterator<Item = usize> {
    (0..=300).chain(4090..=4100).chain(MAX_PAYLOAD - 40..=MAX_PAYLOAD)
}

#[test]
fn every_size_is_sealed_and_opened_in_place() {
    for suite in Suite::ALL {
        let (mut sealer, mut opener) = (sealer(suite), opener(suite, Role::Server));
        for size in sizes() {
            let payload: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
            let mut record = seal(&mut sealer, &payload);
            assert_eq!(Opener::record_len(&record), Ok(Some(size + OVERHEAD)));
            assert!(size < 8 || record[HEADER_LEN..HEADER_LEN + size] != payload);
            // Data resets the budget that an empty record is charged to.
            assert_eq!(open(&mut opener, &mut record).unwrap(), payload, "{suite:?} {size}");
        }
    }
}

#[test]
fn a_buffer_that_is_not_one_record_is_refused_and_changes_nothing() {
    let suite = Suite::Aes128GcmSha256;
    let (mut sealer, mut opener) = (sealer(suite), opener(suite, Role::Server));
    for len in (0..OVERHEAD).chain([MAX_PAYLOAD + OVERHEAD + 1, 1 << 17]) {
        assert_eq!(sealer.seal(&mut vec![0; len]), Err(Error::BufferSize));
    }
    let record = seal(&mut sealer, b"data");
    for cut in 0..record.len() {
        assert_eq!(opener.open(&mut record[..cut].to_vec()), Err(Error::BufferSize));
    }
    assert_eq!(opener.open(&mut [&record[..], &[0]].concat()), Err(Error::BufferSize));
    assert_eq!(open(&mut opener, &mut record.clone()).unwrap(), b"data");
}

#[test]
fn headers_are_checked() {
    let [high, low] = u16::try_from(MAX_RECORD - HEADER_LEN).unwrap().to_be_bytes();
    let cases: [(&[u8], crate::Result<Option<usize>>); 13] = [
        (&[], Ok(None)),
        (&[23, 3, 3, 0], Ok(None)),
        (&[20], Ok(None)),
        (&[23, 3, 3, 0, 17], Ok(Some(OVERHEAD))),
        (&[23, 3, 3, 0, 17, 9, 9], Ok(Some(OVERHEAD))),
        (&[23, 3, 3, high, low], Ok(Some(MAX_RECORD))),
        (&[23, 3, 3, high, low + 1], Err(Error::RecordTooLong)),
        (&[23, 3, 3, 255, 255], Err(Error::RecordTooLong)),
        (&[23, 3, 3, 0, 16], Err(Error::RecordTooShort)),
        (&[23, 3, 1, 0, 17], Err(Error::RecordVersion(0x0301))),
        (&[20, 3, 3, 0, 1, 1], Err(Error::UnexpectedRecord(20))),
        (&[21, 3, 3, 0, 2, 1, 0], Err(Error::UnexpectedRecord(21))),
        (b"GET / HTTP/1.1", Err(Error::UnexpectedRecord(b'G'))),
    ];
    for (buffer, expected) in cases {
        assert_eq!(Opener::record_len(buffer), expected, "{buffer:?}");
    }
}

#[test]
fn a_record_is_opened_once_all_of_it_is_there_wherever_it_was_split() {
    let suite = Suite::ChaCha20Poly1305Sha256;
    let (mut sealer, mut opener) = (sealer(suite), opener(suite, Role::Server));
    for split in 0..2 * (40 + OVERHEAD) {
        let both = [seal(&mut sealer, &[1; 40]), seal(&mut sealer, &[2; 40])].concat();
        let mut buffer = Vec::new();
        let mut data = Vec::new();
        for part in [&both[..split], &both[split..]] {
            buffer.extend_from_slice(part);
            while let Some(len) = Opener::record_len(&buffer).unwrap().filter(|len| *len <= buffer.len()) {
                let mut record: Vec<u8> = buffer.drain(..len).collect();
                data.extend(open(&mut opener, &mut record).unwrap());
            }
        }
        assert_eq!(data, [[1; 40], [2; 40]].concat());
    }
}

#[test]
fn tampering_with_any_bit_of_any_byte_is_an_error_and_closes() {
    for suite in Suite::ALL {
        let record = seal(&mut sealer(suite), &[3; 70]);
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut tampered = record.clone();
                tampered[at] ^= 1 << bit;
                let mut opener = opener(suite, Role::Server);
                let error = opener.open(&mut tampered).unwrap_err();
                // A length that no longer matches is the caller's to notice: the stream has more or fewer bytes.
                assert!(error == Error::BufferSize || error.is_peers_fault(), "{error}");
                assert!(at < HEADER_LEN || error == Error::BadRecordMac);
                if error != Error::BufferSize {
                    assert_eq!(opener.open(&mut record.clone()), Err(Error::Closed));
                }
            }
        }
    }
}

#[test]
fn a_shortened_record_with_a_fitting_length_does_not_open() {
    for suite in Suite::ALL {
        let mut record = seal(&mut sealer(suite), &[3; 70]);
        record.pop();
        record[4] -= 1;
        assert_eq!(opener(suite, Role::Server).open(&mut record), Err(Error::BadRecordMac));
    }
}

#[test]
fn replayed_reordered_and_missing_records_do_not_open() {
    for suite in Suite::ALL {
        let mut sealer = sealer(suite);
        let records: Vec<_> = (0..3).map(|_| seal(&mut sealer, b"same")).collect();
        for order in [[0, 0], [0, 2], [1, 0]] {
            let mut opener = opener(suite, Role::Server);
            let opened = order.map(|at| opener.open(&mut records[at].clone()));
            assert!(opened.contains(&Err(Error::BadRecordMac)), "{order:?}");
        }
    }
}

#[test]
fn padding_is_stripped() {
    let mut forger = Forger::new(Suite::Aes256GcmSha384);
    let mut opener = opener(Suite::Aes256GcmSha384, Role::Server);
    for (content, padding) in [(0, 0), (0, 1), (1, 1), (5, 300), (100, MAX_PAYLOAD - 100), (0, MAX_PAYLOAD)] {
        let mut record =
            forger.inner(&[&vec![9; content][..], &[content::APPLICATION_DATA], &vec![0; padding]].concat());
        assert_eq!(opener.open(&mut record), Ok(Opened::Data(HEADER_LEN..HEADER_LEN + content)));
    }
    // Zeroes of the content are none.
    let mut record = forger.inner(&[0, 0, content::APPLICATION_DATA, 0]);
    assert_eq!(opener.open(&mut record), Ok(Opened::Data(HEADER_LEN..HEADER_LEN + 2)));
}

#[test]
fn plaintext_that_is_no_content_is_refused() {
    let suite = Suite::Aes128GcmSha256;
    let long = MAX_PAYLOAD + 2;
    let cases: [(Vec<u8>, Error, Alert); 9] = [
        (vec![0], Error::NoContent, Alert::UNEXPECTED_MESSAGE),
        (vec![0; 500], Error::NoContent, Alert::UNEXPECTED_MESSAGE),
        (vec![1; long], Error::RecordTooLong, Alert::RECORD_OVERFLOW),
        ([vec![23], vec![0; long - 1]].concat(), Error::RecordTooLong, Alert::RECORD_OVERFLOW),
        (vec![1, 20], Error::UnexpectedRecord(20), Alert::UNEXPECTED_MESSAGE),
        (vec![1, 24, 0], Error::UnexpectedRecord(24), Alert::UNEXPECTED_MESSAGE),
        (vec![21], Error::NoContent, Alert::UNEXPECTED_MESSAGE),
        (vec![22, 0, 0], Error::NoContent, Alert::UNEXPECTED_MESSAGE),
        (vec![2, 0, 0, 21], Error::MessageLength, Alert::DECODE_ERROR),
    ];
    for (inner, error, alert) in cases {
        let mut record = Forger::new(suite).inner(&inner);
        assert_eq!(opener(suite, Role::Client).open(&mut record), Err(error));
        assert_eq!(error.alert(), alert);
        assert!(error.is_peers_fault());
    }
}

#[test]
fn debug_shows_no_secret() {
    let suite = Suite::Aes128GcmSha256;
    let texts = [
        format!("{:?}", super::support::secret(suite)),
        format!("{:?}", sealer(suite)),
        format!("{:?}", opener(suite, Role::Client)),
        format!("{:?}", sealer(suite).into_parts()),
        format!("{:?}", opener(suite, Role::Client).into_parts()),
    ];
    for text in texts {
        assert!(!text.contains("7, 7") && !text.contains("0707") && !text.contains("aead"), "{text}");
    }
}
