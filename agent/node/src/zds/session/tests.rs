use super::*;

type Test = Session<&'static str, u8>;

const HELLO: &[u8] = &[0x08, 0x01];
const ACK: &[u8] = &[0x0a, 0x00];
/// An ack with the error `no`.
const NACK: &[u8] = &[0x0a, 0x04, 0x0a, 0x02, b'n', b'o'];
/// `snapshot_sent`.
const END: &[u8] = &[0x1a, 0x00];

fn pod(uid: &str) -> AgentPod {
    AgentPod { uid: uid.into(), name: "n".into(), namespace: "s".into(), service_account: "a".into() }
}

fn add(uid: &str, ticket: Option<u8>) -> Order<&'static str, u8> {
    Order::Add { pod: pod(uid), netns: "fd", ticket }
}

/// `add` of `u`: field 1 {uid 1, info 2 {name 1, namespace 2, service account 3}}, as bytes.
fn add_packet(uid: u8) -> Vec<u8> {
    vec![0x0a, 0x0e, 0x0a, 1, uid, 0x12, 9, 0x0a, 1, b'n', 0x12, 1, b's', 0x1a, 1, b'a']
}

fn send(packet: &[u8]) -> Vec<Effect<&'static str, u8>> {
    vec![Effect::Send { packet: packet.to_vec(), netns: None }]
}

fn send_add(uid: u8) -> Effect<&'static str, u8> {
    Effect::Send { packet: add_packet(uid), netns: Some("fd") }
}

/// A connection past its snapshot.
fn live(now: Instant) -> Test {
    let mut session = Test::new(now);
    assert_eq!(session.packet(HELLO, now), [Effect::TakeSnapshot]);
    assert_eq!(session.snapshot([], now), send(END));
    assert_eq!(session.packet(ACK, now), [Effect::Synced]);
    session
}

#[test]
fn the_snapshot_goes_one_by_one_and_ends_with_a_mark() {
    let now = Instant::now();
    let mut session = Test::new(now);
    assert_eq!(session.packet(HELLO, now), [Effect::TakeSnapshot]);
    let orders = [add("u", None), Order::Keep { uid: "k".into() }];
    assert_eq!(session.snapshot(orders, now), [send_add(b'u')]);
    // An order that comes meanwhile waits behind the snapshot.
    assert_eq!(session.order(add("v", Some(7)), now), []);
    // A refused pod of the snapshot is named, and does not stop it.
    let refused = Effect::SnapshotRefused { what: "add u (s/n)".into(), error: "no".into() };
    let keep = vec![0x2a, 3, 0x0a, 1, b'k'];
    assert_eq!(session.packet(NACK, now), [refused, Effect::Send { packet: keep, netns: None }]);
    assert_eq!(session.packet(ACK, now), send(END));
    assert_eq!(session.packet(ACK, now), [Effect::Synced, send_add(b'v')]);
    assert_eq!(session.packet(ACK, now), [Effect::Settle(7, Ok(()))]);
    assert_eq!(session.deadline(), None);
}

#[test]
fn one_request_is_out_at_a_time_and_answers_find_their_askers() {
    let now = Instant::now();
    let mut session = live(now);
    assert_eq!(session.order(add("u", Some(1)), now), [send_add(b'u')]);
    assert_eq!(session.order(Order::Del { uid: "d".into(), ticket: Some(2) }, now), []);
    let del = vec![0x12, 3, 0x12, 1, b'd'];
    let refused = Effect::Settle(1, Err(AgentError::Refused("no".into())));
    assert_eq!(session.packet(NACK, now), [refused, Effect::Send { packet: del, netns: None }]);
    assert_eq!(session.packet(ACK, now), [Effect::Settle(2, Ok(()))]);
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let start = Instant::now();
    let mut session = live(start);
    session.order(add("u", Some(1)), start);
    session.order(add("v", Some(2)), start);
    let late = session.deadline().unwrap();
    assert_eq!(late, start + PATIENCE);
    assert_eq!(session.tick(start), []);
    assert_eq!(session.tick(late), [Effect::Settle(1, Err(AgentError::Late)), send_add(b'v')]);
    // The answer to the first, too late, and then the one to the second.
    assert_eq!(
        session.packet(NACK, late),
        [Effect::SnapshotRefused { what: "add u (s/n)".into(), error: "no".into() }]
    );
    assert_eq!(session.packet(ACK, late), [Effect::Settle(2, Ok(()))]);
}

#[test]
fn a_peer_that_never_answers_is_given_up() {
    let mut now = Instant::now();
    let mut session = live(now);
    for ticket in 0..20 {
        session.order(add("u", Some(ticket)), now);
    }
    for ticket in 0..5 {
        now = session.deadline().unwrap();
        assert_eq!(session.tick(now), [Effect::Settle(ticket, Err(AgentError::Late)), send_add(b'u')]);
    }
    now = session.deadline().unwrap();
    assert_eq!(session.tick(now), [Effect::Settle(5, Err(AgentError::Late)), Effect::Close(Closed::Dead(6))]);
    assert_eq!(session.abandon(), (6..20).collect::<Vec<_>>());
    assert_eq!(session.packet(ACK, now), []);
}

#[test]
fn what_is_not_the_protocol_closes_the_connection() {
    let now = Instant::now();
    let mut quiet = Test::new(now);
    assert_eq!(quiet.tick(now), []);
    assert_eq!(quiet.tick(quiet.deadline().unwrap()), [Effect::Close(Closed::NoHello)]);

    assert_eq!(Test::new(now).packet(&[0x08, 0x02], now), [Effect::Close(Closed::Version(2))]);
    assert_eq!(Test::new(now).packet(&[], now), [Effect::Close(Closed::Version(0))]);
    assert!(matches!(
        Test::new(now).packet(&[0xff], now).as_slice(),
        [Effect::Close(Closed::Garbage { len: 1, .. })]
    ));
    assert_eq!(live(now).packet(ACK, now), [Effect::Close(Closed::Unasked)]);

    let mut session = live(now);
    session.order(add("u", Some(1)), now);
    session.order(add("v", Some(2)), now);
    assert!(matches!(session.packet(&[], now).as_slice(), [Effect::Close(Closed::Garbage { .. })]));
    assert_eq!(session.abandon(), [1, 2]);
}
