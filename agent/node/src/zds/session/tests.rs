use super::*;

type Test = Session<&'static str, u8>;

const HELLO: &[u8] = &[0x08, 0x01];
const ACK: &[u8] = &[0x0a, 0x00];
/// An ack with the error `no`.
const NACK: &[u8] = &[0x0a, 0x04, 0x0a, 0x02, b'n', b'o'];
/// `snapshot_sent`.
const END: &[u8] = &[0x1a, 0x00];

fn pod(uid: &str) -> PodRef {
    PodRef { uid: uid.into(), name: "n".into(), namespace: "s".into(), service_account: "a".into() }
}

fn add(uid: &str, ack: Option<u8>) -> Request<&'static str, u8> {
    Request::Add { pod: pod(uid), netns: "fd", ack }
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
    assert_eq!(session.handle_packet(HELLO, now), [Effect::TakeSnapshot]);
    assert_eq!(session.snapshot([], now), send(END));
    assert_eq!(session.handle_packet(ACK, now), [Effect::Synced]);
    session
}

#[test]
fn the_snapshot_is_sent_one_request_at_a_time_and_ends_with_a_marker() {
    let now = Instant::now();
    let mut session = Test::new(now);
    assert_eq!(session.handle_packet(HELLO, now), [Effect::TakeSnapshot]);
    let requests = [add("u", None), Request::Keep { uid: "k".into() }];
    assert_eq!(session.snapshot(requests, now), [send_add(b'u')]);
    // A request that is queued meanwhile waits behind the snapshot.
    assert_eq!(session.enqueue(add("v", Some(7)), now), []);
    // A refused pod of the snapshot is reported and does not stop it.
    let refused = Effect::SnapshotRefused { what: "add u (s/n)".into(), error: "no".into() };
    let keep = vec![0x2a, 3, 0x0a, 1, b'k'];
    assert_eq!(session.handle_packet(NACK, now), [refused, Effect::Send { packet: keep, netns: None }]);
    assert_eq!(session.handle_packet(ACK, now), send(END));
    assert_eq!(session.handle_packet(ACK, now), [Effect::Synced, send_add(b'v')]);
    assert_eq!(session.handle_packet(ACK, now), [Effect::ResolveAck(7, Ok(()))]);
    assert_eq!(session.deadline(), None);
}

#[test]
fn one_request_is_in_flight_and_acks_resolve_in_order() {
    let now = Instant::now();
    let mut session = live(now);
    assert_eq!(session.enqueue(add("u", Some(1)), now), [send_add(b'u')]);
    assert_eq!(session.enqueue(Request::Del { uid: "d".into(), ack: Some(2) }, now), []);
    let del = vec![0x12, 3, 0x12, 1, b'd'];
    let refused = Effect::ResolveAck(1, Err(AgentError::Refused("no".into())));
    assert_eq!(session.handle_packet(NACK, now), [refused, Effect::Send { packet: del, netns: None }]);
    assert_eq!(session.handle_packet(ACK, now), [Effect::ResolveAck(2, Ok(()))]);
}

#[test]
fn a_late_ack_is_matched_to_its_own_request() {
    let start = Instant::now();
    let mut session = live(start);
    session.enqueue(add("u", Some(1)), start);
    session.enqueue(add("v", Some(2)), start);
    let late = session.deadline().unwrap();
    assert_eq!(late, start + ACK_TIMEOUT);
    assert_eq!(session.handle_timeout(start), []);
    assert_eq!(
        session.handle_timeout(late),
        [Effect::ResolveAck(1, Err(AgentError::TimedOut)), send_add(b'v')]
    );
    // The overdue ack of the first request, then the ack of the second.
    assert_eq!(
        session.handle_packet(NACK, late),
        [Effect::SnapshotRefused { what: "add u (s/n)".into(), error: "no".into() }]
    );
    assert_eq!(session.handle_packet(ACK, late), [Effect::ResolveAck(2, Ok(()))]);
}

#[test]
fn an_agent_that_never_acks_is_disconnected() {
    let mut now = Instant::now();
    let mut session = live(now);
    for ack in 0..20 {
        session.enqueue(add("u", Some(ack)), now);
    }
    for ack in 0..5 {
        now = session.deadline().unwrap();
        assert_eq!(
            session.handle_timeout(now),
            [Effect::ResolveAck(ack, Err(AgentError::TimedOut)), send_add(b'u')]
        );
    }
    now = session.deadline().unwrap();
    assert_eq!(
        session.handle_timeout(now),
        [Effect::ResolveAck(5, Err(AgentError::TimedOut)), Effect::Close(SessionError::Dead(6))]
    );
    assert_eq!(session.abandon(), (6..20).collect::<Vec<_>>());
    assert_eq!(session.handle_packet(ACK, now), []);
}

#[test]
fn a_protocol_violation_closes_the_connection() {
    let now = Instant::now();
    let mut quiet = Test::new(now);
    assert_eq!(quiet.handle_timeout(now), []);
    assert_eq!(quiet.handle_timeout(quiet.deadline().unwrap()), [Effect::Close(SessionError::NoHello)]);

    assert_eq!(Test::new(now).handle_packet(&[0x08, 0x02], now), [Effect::Close(SessionError::Version(2))]);
    assert_eq!(Test::new(now).handle_packet(&[], now), [Effect::Close(SessionError::Version(0))]);
    assert!(matches!(
        Test::new(now).handle_packet(&[0xff], now).as_slice(),
        [Effect::Close(SessionError::Garbage { len: 1, .. })]
    ));
    assert_eq!(live(now).handle_packet(ACK, now), [Effect::Close(SessionError::UnexpectedAck)]);

    let mut session = live(now);
    session.enqueue(add("u", Some(1)), now);
    session.enqueue(add("v", Some(2)), now);
    assert!(matches!(
        session.handle_packet(&[], now).as_slice(),
        [Effect::Close(SessionError::Garbage { .. })]
    ));
    assert_eq!(session.abandon(), [1, 2]);
}
