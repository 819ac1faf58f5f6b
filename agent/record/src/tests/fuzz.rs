//! Arbitrary plaintexts of a peer that holds the keys.

use super::support::{Forger, opener};
use crate::{Error, HEADER_LEN, MAX_PAYLOAD, Opened, Opener, Role, Suite, content};

/// Cuts `bytes` into contents: a byte for the type, one for the length, then the content.
fn contents(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    const TYPES: [u8; 8] = [
        content::HANDSHAKE,
        content::HANDSHAKE,
        content::HANDSHAKE,
        content::APPLICATION_DATA,
        content::APPLICATION_DATA,
        content::ALERT,
        20,
        0,
    ];
    let mut contents = Vec::new();
    while let [kind, len, rest @ ..] = bytes {
        let (content, after) = rest.split_at(usize::from(*len).min(rest.len()));
        contents.push([content, &[TYPES[usize::from(*kind) % 8]], &vec![0; usize::from(kind / 8)]].concat());
        bytes = after;
    }
    contents
}

/// Takes each plaintext in a record of its own, until one is an error, which must be the peer's.
fn open_all(role: Role, plaintexts: &[Vec<u8>]) -> Vec<Opened> {
    let suite = Suite::Aes128GcmSha256;
    let (mut forger, mut opener, mut opened) = (Forger::new(suite), opener(suite, role), Vec::new());
    for plaintext in plaintexts {
        let mut record = forger.inner(plaintext);
        match opener.open(&mut record) {
            // The forger does not follow.
            Ok(done @ (Opened::KeyUpdate { .. } | Opened::CloseNotify | Opened::Alert(_))) => {
                opened.push(done);
                return opened;
            }
            Ok(one) => {
                if let Opened::Data(range) = &one {
                    let content = &plaintext[..range.len()];
                    assert!(range.len() <= MAX_PAYLOAD && record[HEADER_LEN..][..range.len()] == *content);
                }
                opened.push(one);
            }
            Err(error) => {
                assert!(error.is_peers_fault(), "{error}");
                assert_eq!(opener.open(&mut record), Err(Error::Closed));
                return opened;
            }
        }
        opener = Opener::from_parts(opener.into_parts()).unwrap();
    }
    opened
}

#[test]
fn fuzz_plaintexts() {
    bolero::check!().with_max_len(600).for_each(|bytes: &[u8]| {
        let plaintexts = contents(bytes);
        open_all(Role::Client, &plaintexts);
        open_all(Role::Server, &plaintexts);
    });
}

/// Handshake messages mean the same whatever their fragments are.
#[test]
fn fuzz_fragments() {
    bolero::check!().with_max_len(200).for_each(|bytes: &[u8]| {
        let Some((cut, rest)) = bytes.split_first() else { return };
        let update = [24, 0, 0, 1, cut % 2];
        let ticket = [&[4, 0, 0, 14 + cut % 100], &vec![0x44; usize::from(14 + cut % 100)][..]].concat();
        let message = [&ticket[..], &update].concat();
        let mut fragments = Vec::new();
        let mut missing = &message[..];
        for len in rest.iter().take(30) {
            let (fragment, after) = missing.split_at(usize::from(len % 60).min(missing.len()));
            if !fragment.is_empty() {
                fragments.push([fragment, &[content::HANDSHAKE]].concat());
            }
            missing = after;
        }
        if !missing.is_empty() {
            fragments.push([missing, &[content::HANDSHAKE]].concat());
        }
        let opened = open_all(Role::Client, &fragments);
        assert_eq!(opened.last(), Some(&Opened::KeyUpdate { requested: cut % 2 == 1 }));
    });
}
