use super::ast::*;
use super::expr::Expr;
use super::*;

fn net(text: &str) -> Match {
    Match::Net(text.parse().unwrap())
}

fn every_statement() -> Vec<Statement> {
    use Statement as S;
    vec![
        S::Interface(Direction::In, Op::Eq, "eth0".to_owned()),
        S::Interface(Direction::Out, Op::Ne, "lo".to_owned()),
        S::L4Proto(Proto::Tcp),
        S::NfProto(SetKind::Ipv6Addr),
        S::Address(Side::Source, Op::Eq, net("10.0.0.1/32")),
        S::Address(Side::Destination, Op::Ne, net("10.0.0.0/12")),
        S::Address(Side::Source, Op::Ne, net("fd00::/64")),
        S::Address(Side::Destination, Op::Eq, net("::1/128")),
        S::Address(Side::Destination, Op::Eq, Match::Set { kind: SetKind::Ipv4Addr, name: "v4".to_owned() }),
        S::Address(Side::Source, Op::Ne, Match::Set { kind: SetKind::Ipv6Addr, name: "v6".to_owned() }),
        S::Port(Proto::Tcp, Side::Destination, Op::Ne, 15008),
        S::Port(Proto::Udp, Side::Source, Op::Eq, 53),
        S::TcpFlags { mask: 6, op: Op::Eq, value: 0 },
        S::EtherType(SetKind::Ipv4Addr),
        S::Mark { mask: 0xfff, op: Op::Ne, value: 0x539 },
        S::Mark { mask: u32::MAX, op: Op::Eq, value: 7 },
        S::CtMark { mask: 0xfff, op: Op::Eq, value: 0x111 },
        S::SocketUid(Op::Eq, 1000),
        S::Counter,
        S::Verdict(Verdict::Accept),
        S::Verdict(Verdict::Drop),
        S::Verdict(Verdict::Return),
        S::Verdict(Verdict::Jump("other".to_owned())),
        S::Redirect(15001),
        S::Snat("169.254.7.127".parse().unwrap()),
        S::Snat("fd16::1".parse().unwrap()),
        S::SetCtMark { keep: 0xffff_f000, set: 0x111 },
        S::SetMarkFromCt,
        S::SetCtZone(1),
        S::SetCtOriginalZone(1),
        S::CtEstablished,
        S::Dnat("10.0.0.7".parse().unwrap()),
        S::Dnat("fd16::2".parse().unwrap()),
    ]
}

#[test]
fn every_statement_round_trips_through_the_wire_format() {
    for statement in every_statement() {
        let rule = Rule::new([statement.clone()]);
        let wired: Vec<Expr> =
            lower::rule(&rule).iter().map(|expr| wire::decode(&wire::encode(expr).unwrap())).collect();
        assert_eq!(lift::rule(&wired), rule, "{statement}");
    }
}

#[test]
fn every_statement_displays_differently() {
    let mut texts: Vec<_> = every_statement().iter().map(ToString::to_string).collect();
    assert_eq!(texts[1], "oifname != lo");
    assert_eq!(texts[5], "ip daddr != 10.0.0.0/12");
    assert_eq!(texts[9], "ip6 saddr != @v6");
    assert_eq!(texts[12], "tcp flags & 0x6 == 0x0");
    assert_eq!(texts[14], "meta mark & 0xfff != 0x539");
    assert_eq!(texts[26], "ct mark set ct mark & 0xfffff000 | 0x111");
    let all = texts.len();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), all);
}

#[test]
fn implied_checks_are_emitted_once_and_not_lifted() {
    let port = Statement::Port(Proto::Tcp, Side::Destination, Op::Eq, 53);
    let address = Statement::Address(Side::Source, Op::Eq, net("10.0.0.1/32"));
    let short = Rule::new([address.clone(), port.clone()]);
    let long =
        Rule::new([Statement::NfProto(SetKind::Ipv4Addr), address, Statement::L4Proto(Proto::Tcp), port]);
    assert_eq!(lower::rule(&short), lower::rule(&long));
    assert_eq!(lift::rule(&lower::rule(&long)), short);
    // A check that no later statement implies stays.
    let udp =
        Rule::new([Statement::L4Proto(Proto::Udp), Statement::Port(Proto::Tcp, Side::Source, Op::Eq, 1)]);
    assert_eq!(lift::rule(&lower::rule(&udp)), udp);
}

#[test]
fn an_unknown_statement_is_displayed_and_never_written() {
    let foreign = vec![Expr::Load(expr::Source::Transport { offset: 2, len: 2 }), Expr::Equal(vec![0, 53])];
    let rule = lift::rule(&foreign);
    assert!(rule.statements.iter().all(|s| matches!(s, Statement::Unknown(_))), "{rule}");
    let chain = Chain { name: "c".to_owned(), base: None, rules: vec![rule] };
    let table = Table { family: Family::Inet, name: "t".to_owned(), sets: vec![], chains: vec![chain] };
    let ruleset = Ruleset { tables: vec![table] };
    let error = command::replace(&ruleset).unwrap_err().to_string();
    assert!(error.starts_with("nftables: add rule inet t c <"), "{error}");
    assert!(ruleset.to_string().starts_with("c: <"), "{ruleset}");
}

#[test]
fn a_comment_that_is_too_long_is_refused() {
    let element = |comment: String| Element { address: "10.0.0.1".parse().unwrap(), comment: Some(comment) };
    assert!(element("x".repeat(127)).checked().is_ok());
    let error = element("x".repeat(128)).checked().unwrap_err().to_string();
    assert!(error.starts_with("nftables: element 10.0.0.1: comment"), "{error}");
}
