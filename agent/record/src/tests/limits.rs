//! Budgets and the limits of keys.

use super::support::{Copies as _, Forger, open, opener, opener_at, seal, sealer_at};
use crate::{Error, OVERHEAD, Opened, Role, Suite, content};

const SUITE: Suite = Suite::Aes128GcmSha256;

#[test]
fn records_without_data_are_limited_in_a_row() {
    let ticket = [&[4, 0, 0, 20][..], &[0; 20]].concat();
    let kinds: [(u8, &[u8]); 3] =
        [(content::APPLICATION_DATA, b""), (content::HANDSHAKE, &ticket), (content::ALERT, &[1, 90])];
    for (kind, content) in kinds {
        let (mut forger, mut opener) = (Forger::new(SUITE), opener(SUITE, Role::Client));
        for _ in 0..3 {
            for _ in 0..32 {
                opener.open(&mut forger.record(kind, content)).unwrap();
            }
            // Data resets the budget.
            opener.open(&mut forger.record(content::APPLICATION_DATA, b"data")).unwrap();
        }
        let opened: Vec<_> = (0..33).map(|_| opener.open(&mut forger.record(kind, content))).collect();
        assert!(opened[..32].iter().all(Result::is_ok));
        assert_eq!(opened[32], Err(Error::NoProgress));
    }
}

#[test]
fn key_updates_are_limited_in_a_row_and_the_end_is_not() {
    for suite in Suite::ALL {
        let (mut sealer, mut opener) = (sealer_at(suite, 0), opener(suite, Role::Server));
        for _ in 0..2 {
            for _ in 0..32 {
                opener.open(&mut sealer.key_update(true).unwrap()).unwrap();
            }
            open(&mut opener, &mut seal(&mut sealer, b"data")).unwrap();
        }
        for _ in 0..32 {
            opener.open(&mut sealer.key_update(false).unwrap()).unwrap();
        }
        let (sealers, openers) = (sealer.copies(), opener.copies());
        let (mut sealer, mut opener) = (sealers.0, openers.0);
        assert_eq!(opener.open(&mut sealer.key_update(false).unwrap()), Err(Error::NoProgress));
        let (mut sealer, mut opener) = (sealers.1, openers.1);
        assert_eq!(opener.open(&mut sealer.close_notify().unwrap()), Ok(Opened::CloseNotify));
    }
}

#[test]
fn a_key_is_refused_before_its_limit_and_an_update_makes_room() {
    for suite in [Suite::Aes128GcmSha256, Suite::Aes256GcmSha384, Suite::ChaCha20Poly1305Sha256] {
        let limit = suite.record_limit();
        assert!(suite == Suite::ChaCha20Poly1305Sha256 || limit < 23_726_566, "2^24.5");
        let (mut sealer, mut opener) =
            (sealer_at(suite, limit - 1), opener_at(suite, Role::Server, limit - 1));
        assert!(sealer.needs_key_update() && opener.wants_key_update());
        open(&mut opener, &mut seal(&mut sealer, b"last")).unwrap();
        assert_eq!(sealer.seal(&mut [0; OVERHEAD + 1]), Err(Error::KeyExhausted));
        assert!(!Error::KeyExhausted.is_peers_fault());
        opener.open(&mut sealer.key_update(false).unwrap()).unwrap();
        assert!(!sealer.needs_key_update() && !opener.wants_key_update());
        open(&mut opener, &mut seal(&mut sealer, b"first")).unwrap();
    }
}

#[test]
fn an_update_is_due_at_half_of_the_limit() {
    let half = SUITE.record_limit() / 2;
    let mut sealer = sealer_at(SUITE, half - 1);
    assert!(!sealer.needs_key_update());
    seal(&mut sealer, b"data");
    assert!(sealer.needs_key_update());
}

#[test]
fn alerts_pass_the_limit_of_the_key() {
    let limit = SUITE.record_limit();
    let (mut sealer, mut opener) = (sealer_at(SUITE, limit), opener_at(SUITE, Role::Server, limit));
    assert_eq!(opener.open(&mut sealer.close_notify().unwrap()), Ok(Opened::CloseNotify));
}

#[test]
fn sequence_numbers_never_wrap() {
    for suite in Suite::ALL {
        assert_eq!(sealer_at(suite, u64::MAX).key_update(false), Err(Error::SequenceExhausted));
        assert_eq!(sealer_at(suite, u64::MAX).close_notify(), Err(Error::SequenceExhausted));
        let mut last = sealer_at(suite, u64::MAX - 1).close_notify().unwrap();
        assert_eq!(opener_at(suite, Role::Client, u64::MAX).open(&mut last), Err(Error::SequenceExhausted));
        assert_eq!(opener_at(suite, Role::Client, u64::MAX - 1).open(&mut last), Ok(Opened::CloseNotify));
    }
}
