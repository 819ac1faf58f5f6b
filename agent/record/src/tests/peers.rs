//! rustls as the oracle: what we seal it opens, what it seals we open, through key updates and moves.

use super::support::{Configs, Copies as _, Link, feed, seal};
use crate::{Alert, MAX_PAYLOAD, OVERHEAD, Opened, Opener, Role, Sealer, Suite};

/// Each suite in each role.
fn cases() -> impl Iterator<Item = (Suite, Role)> {
    Suite::ALL.into_iter().flat_map(|suite| [(suite, Role::Client), (suite, Role::Server)])
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect()
}

#[test]
fn every_size_passes_both_ways() {
    for (suite, role) in cases() {
        let mut link = Link::new(&Configs::new(suite), role);
        assert_eq!(link.session.suite, suite);
        link.receive();
        for size in (0..=300).chain(MAX_PAYLOAD - 20..=MAX_PAYLOAD) {
            let payload = bytes(size);
            assert_eq!(link.send(&payload), payload, "{suite:?} {role:?} {size}");
            link.answer(&payload);
            assert_eq!(link.receive(), (payload, Vec::new()), "{suite:?} {role:?} {size}");
        }
    }
}

#[test]
fn records_pass_wherever_they_are_split() {
    for (suite, role) in cases() {
        let mut link = Link::new(&Configs::new(suite), role);
        link.receive();
        for split in 0..=50 + OVERHEAD {
            let record = seal(&mut link.session.sealer, &bytes(50));
            let mut data = link.deliver(&record[..split]);
            data.extend(link.deliver(&record[split..]));
            assert_eq!(data, bytes(50));
            // The other way, the header of a part says that there is more to come.
            link.answer(&bytes(50));
            let len = Opener::record_len(&link.inbox[..split]).unwrap();
            assert_eq!(len, (split >= crate::HEADER_LEN).then_some(50 + OVERHEAD));
            assert_eq!(link.receive(), (bytes(50), Vec::new()));
        }
    }
}

#[test]
fn a_servers_tickets_are_ignored() {
    let mut configs = Configs::new(Suite::Aes256GcmSha384);
    configs.server.send_tls13_tickets = 5;
    configs.server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let mut link = Link::new(&configs, Role::Client);
    link.answer(b"after tickets");
    let (data, others) = link.receive();
    assert_eq!(data, b"after tickets");
    assert!(!others.is_empty() && others.iter().all(|other| *other == Opened::Ticket), "{others:?}");
}

#[test]
fn a_server_of_ours_sends_no_tickets() {
    let mut configs = Configs::new(Suite::Aes256GcmSha384);
    configs.server.send_tls13_tickets = 5;
    let link = Link::new(&configs, Role::Server);
    assert_eq!(link.session.sealer.into_parts().sequence, 0);
}

/// A random conversation. `random` decides who sends what, who updates keys, and when our end is moved.
fn converse(link: &mut Link, random: &mut fastrand::Rng) {
    let mut must_answer = false;
    let mut updates_of_peer = 0;
    let mut awaited = 0;
    for _ in 0..400 {
        let payload = bytes(random.usize(1..2000));
        match random.u8(0..6) {
            0 => {
                let record = link.session.sealer.key_update(random.bool()).unwrap();
                assert_eq!(link.deliver(&record), b"");
                must_answer = false;
            }
            1 if awaited == 0 => {
                link.peer.refresh_traffic_keys().unwrap();
                awaited += 1;
            }
            2 => take_apart(link),
            3 => {
                // An answer that is due comes before data.
                if std::mem::take(&mut must_answer) {
                    let record = link.session.sealer.key_update(false).unwrap();
                    link.deliver(&record);
                }
                assert_eq!(link.send(&payload), payload);
            }
            _ => {
                link.answer(&payload);
                let (data, others) = link.receive();
                assert_eq!(data, payload);
                for other in others {
                    let Opened::KeyUpdate { requested } = other else { panic!("{other:?}") };
                    updates_of_peer += 1;
                    must_answer |= requested;
                    awaited = 0;
                }
            }
        }
    }
    assert!(updates_of_peer > 10, "{updates_of_peer}");
}

/// Our end as plain values, and together again.
fn take_apart(link: &mut Link) {
    let session = &mut link.session;
    let (spare_sealer, spare_opener) = Link::spare(session.suite, session.role);
    let sealer = std::mem::replace(&mut session.sealer, spare_sealer).into_parts();
    let opener = std::mem::replace(&mut session.opener, spare_opener).into_parts();
    session.sealer = Sealer::from_parts(sealer).unwrap();
    session.opener = Opener::from_parts(opener).unwrap();
}

#[test]
fn key_updates_and_moves_at_random_points_lose_nothing() {
    for (seed, (suite, role)) in (0..).zip(cases()) {
        let mut link = Link::new(&Configs::new(suite), role);
        link.receive();
        converse(&mut link, &mut fastrand::Rng::with_seed(seed));
    }
}

#[test]
fn a_requested_update_is_answered_by_rustls() {
    for (suite, role) in cases() {
        let mut link = Link::new(&Configs::new(suite), role);
        link.receive();
        for round in 0..10_u8 {
            let requested = link.session.sealer.key_update(true).unwrap();
            link.deliver(&requested);
            link.answer(&[round]);
            assert_eq!(link.receive(), (vec![round], vec![Opened::KeyUpdate { requested: false }]));
            assert_eq!(link.send(&[round]), [round]);
        }
    }
}

#[test]
fn close_notify_and_alerts_reach_rustls_and_come_from_it() {
    for (suite, role) in cases() {
        let mut link = Link::new(&Configs::new(suite), role);
        link.receive();
        link.peer.send_close_notify();
        link.answer(b"");
        assert_eq!(link.receive(), (Vec::new(), vec![Opened::CloseNotify]));
        // The other direction is still open.
        assert_eq!(link.send(b"more"), b"more");
        let record = link.session.sealer.close_notify().unwrap();
        feed(&mut link.peer, &record).unwrap();
        assert!(link.peer.process_new_packets().unwrap().peer_has_closed());

        let mut link = Link::new(&Configs::new(suite), role);
        let record = link.session.sealer.alert(Alert::INTERNAL_ERROR).unwrap();
        let error = feed(&mut link.peer, &record).unwrap_err();
        assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::InternalError));
    }
}

#[test]
fn what_rustls_refuses_arrives_as_an_alert() {
    for (suite, role) in cases() {
        let mut link = Link::new(&Configs::new(suite), role);
        link.receive();
        let mut record = seal(&mut link.session.sealer, b"data");
        *record.last_mut().unwrap() ^= 1;
        feed(&mut link.peer, &record).unwrap_err();
        while link.peer.wants_write() {
            link.peer.write_tls(&mut link.inbox).unwrap();
        }
        assert_eq!(link.receive(), (Vec::new(), vec![Opened::Alert(Alert::BAD_RECORD_MAC)]));
    }
}

#[test]
fn a_copy_of_a_session_goes_on_as_the_original_would() {
    let mut link = Link::new(&Configs::new(Suite::Aes128GcmSha256), Role::Client);
    link.receive();
    link.send(b"before");
    let (sealer, _) = Link::spare(link.session.suite, link.session.role);
    let (mut one, mut other) = std::mem::replace(&mut link.session.sealer, sealer).copies();
    assert_eq!(seal(&mut one, b"after"), seal(&mut other, b"after"));
    assert_eq!(one.key_update(true).unwrap(), other.key_update(true).unwrap());
    assert_eq!(seal(&mut one, b"later"), seal(&mut other, b"later"));
}
