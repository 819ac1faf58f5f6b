use super::*;

/// A query for `name` of this type and class, followed by whatever else.
pub(crate) fn query(name: &str, kind: u16, class: u16, counts: [u8; 3], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, counts[0], 0, counts[1], 0, counts[2]];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&class.to_be_bytes());
    message.extend_from_slice(rest);
    message
}

pub(crate) fn plain(name: &str, kind: u16) -> Vec<u8> {
    query(name, kind, 1, [0; 3], &[])
}

/// An OPT record that offers a size.
pub(crate) fn opt(size: u16) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    vec![0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]
}

#[test]
fn a_and_aaaa_queries_are_parsed() {
    for (name, kind, want, family) in [
        ("web.ns", 1, "web.ns", Family::V4),
        ("WEB.Ns.svc.Cluster.LOCAL", 28, "web.ns.svc.cluster.local", Family::V6),
        ("*.example.com", 1, "*.example.com", Family::V4),
        ("_a-b9.x", 1, "_a-b9.x", Family::V4),
        ("", 1, "", Family::V4),
    ] {
        let message = plain(name, kind);
        let Message::Name(read) = read(&message) else { panic!("{name}") };
        assert_eq!((read.name.as_str(), read.kind), (want, Kind::Addresses(family)));
        assert_eq!((read.id, read.recursion_desired, read.edns), (0xabcd, true, None));
    }
}

#[test]
fn the_edns_payload_size_is_at_least_512() {
    for (size, want) in [(4096, 4096), (1232, 1232), (0, 512), (512, 512), (65_535, 65_535)] {
        let message = query("web", 1, 1, [0, 0, 1], &opt(size));
        let Message::Name(read) = read(&message) else { panic!("{size}") };
        assert_eq!(read.edns, Some(want));
    }
    // Cut off, or too many to be real: the question counts all the same.
    for (counts, rest) in [([0, 0, 1], &opt(4096)[..9]), ([0, 0, 200], &[]), ([0, 9, 1], &[])] {
        let message = query("web", 1, 1, counts, rest);
        let Message::Name(read) = read(&message) else { panic!("{counts:?}") };
        assert_eq!((read.name.as_str(), read.edns), ("web", None));
    }
}

#[test]
fn other_queries_are_forwarded() {
    let change = |at: usize, value: u8| {
        let mut message = plain("web", 1);
        message[at] = value;
        message
    };
    let mut cut = plain("web", 1);
    cut.pop();
    let cases = [
        ("class CH", query("web", 1, 3, [0; 3], &[])),
        ("class ANY", query("web", 1, 255, [0; 3], &[])),
        ("opcode STATUS", change(2, 0x11)),
        ("opcode UPDATE", change(2, 0x28)),
        ("two questions", change(5, 2)),
        ("no question", change(5, 0)),
        ("a reserved flag", change(3, 0x40)),
        ("a question cut off", cut),
        ("a name that is a pointer to itself", [&plain("", 1)[..12], &[0xc0, 12, 0, 1, 0, 1]].concat()),
        ("a label that is too long", [&plain("", 1)[..12], &[64; 80]].concat()),
        ("a name of bytes", [&plain("", 1)[..12], &[2, 0xff, b'.', 0, 0, 1, 0, 1]].concat()),
        ("a dot within a label", [&plain("", 1)[..12], &[3, b'a', b'.', b'b', 0, 0, 1, 0, 1]].concat()),
    ];
    for (what, message) in cases {
        assert!(matches!(read(&message), Message::Other), "{what}");
    }
}

#[test]
fn queries_of_other_types_have_a_name_too() {
    for (kind, want) in [
        (15, Kind::Other),
        (16, Kind::Other),
        (33, Kind::Other),
        (255, Kind::Other),
        (65_280, Kind::Other),
        (64, Kind::Binding),
        (65, Kind::Binding),
    ] {
        let message = plain("Web.ns", kind);
        let Message::Name(read) = read(&message) else { panic!("{kind}") };
        assert_eq!((read.name.as_str(), read.kind), ("web.ns", want), "{kind}");
    }
}

#[test]
fn responses_and_short_messages_are_recognised() {
    let mut answer = plain("web", 1);
    answer[2] |= 0x80;
    assert!(matches!(read(&answer), Message::Response));
    for length in 0..HEADER {
        assert!(matches!(read(&answer[..length]), Message::Runt));
    }
}

#[test]
fn query_types_have_their_metric_labels() {
    for (kind, want) in [
        (1, "a"),
        (28, "aaaa"),
        (15, "mx"),
        (16, "txt"),
        (33, "srv"),
        (255, "any"),
        (65, "https"),
        (65_280, "unknown"),
    ] {
        assert_eq!(type_label(&plain("web", kind)), want);
    }
    assert_eq!(type_label(&[0; 12]), "unknown");
}

#[test]
fn arbitrary_bytes_do_not_panic() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..20_000 {
        let mut message = query("web.ns", 1, 1, [0, 0, 1], &opt(4096));
        for _ in 0..rng.usize(0..6) {
            let at = rng.usize(0..message.len());
            message[at] = rng.u8(..);
        }
        message.truncate(rng.usize(0..=message.len()));
        let _ = (read(&message), type_label(&message));
    }
}
