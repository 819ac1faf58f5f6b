//! nftables on a real kernel: rule sets are applied atomically and idempotently, and read back as written.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use isthmus_kit::lab;
use isthmus_sys::iptables;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{
    self, Base, Chain, ChainKind, Direction, Element, Error, Family, Hook, Match, Op, Policy, Proto, Rule,
    Ruleset, Set, SetKind, Side, Statement, Table, Verdict,
};

fn main() -> ExitCode {
    lab::main(&lab::tests![
        a_rule_set_is_read_back_as_written,
        applying_is_idempotent,
        a_refused_rule_is_named_and_rolls_the_transaction_back,
        only_the_given_tables_are_touched,
        set_elements_are_added_replaced_and_removed,
        elements_must_fit_their_set,
        chains_of_iptables_go_with_what_jumps_to_them,
        sets_of_ipset_are_destroyed,
    ])
}

const JUMP: &str = "deeper";

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { kind, hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules }
}

fn net(text: &str) -> anyhow::Result<Match> {
    Ok(Match::Net(text.parse()?))
}

fn in_set(side: Side, op: Op, kind: SetKind, name: &str) -> Statement {
    Statement::Address(side, op, Match::Set { kind, name: name.to_owned() })
}

/// Every statement that a filter chain allows, each in a rule of its own.
fn filter_rules() -> anyhow::Result<Vec<Rule>> {
    use Statement as S;
    let statements = [
        S::Interface(Direction::In, Op::Eq, "eth0".to_owned()),
        S::Interface(Direction::In, Op::Ne, "lo".to_owned()),
        S::NfProto(SetKind::Ipv6Addr),
        S::L4Proto(Proto::Udp),
        S::Address(Side::Source, Op::Eq, net("10.0.0.1/32")?),
        S::Address(Side::Destination, Op::Ne, net("10.16.0.0/12")?),
        S::Address(Side::Source, Op::Ne, net("fd00::/61")?),
        S::Address(Side::Destination, Op::Eq, net("::1/128")?),
        in_set(Side::Destination, Op::Eq, SetKind::Ipv4Addr, "v4"),
        in_set(Side::Source, Op::Ne, SetKind::Ipv6Addr, "v6"),
        S::Port(Proto::Tcp, Side::Destination, Op::Ne, 15008),
        S::Port(Proto::Udp, Side::Source, Op::Eq, 53),
        S::Mark { mask: 0xfff, op: Op::Ne, value: 0x539 },
        S::Mark { mask: u32::MAX, op: Op::Eq, value: 7 },
        S::CtMark { mask: 0xfff, op: Op::Eq, value: 0x111 },
        S::SetCtMark { keep: 0xffff_f000, set: 0x111 },
        S::SetMarkFromCt,
        S::CtEstablished,
        S::Verdict(Verdict::Accept),
        S::Verdict(Verdict::Drop),
        S::Verdict(Verdict::Return),
        S::Verdict(Verdict::Jump(JUMP.to_owned())),
    ];
    Ok(statements.into_iter().map(|statement| Rule::new([S::Counter, statement])).collect())
}

/// Every statement, each where the kernel allows it.
fn everything() -> anyhow::Result<Ruleset> {
    use Statement as S;
    let redirect = Rule::new([S::L4Proto(Proto::Tcp), S::Redirect(15001)]);
    let snat4 =
        Rule::new([in_set(Side::Destination, Op::Eq, SetKind::Ipv4Addr, "v4"), S::Snat("10.0.0.9".parse()?)]);
    let snat6 = Rule::new([S::SocketUid(Op::Eq, 1000), S::Snat("fd16::1".parse()?)]);
    let dnat4 = Rule::new([S::NfProto(SetKind::Ipv4Addr), S::Dnat("10.0.0.9".parse()?)]);
    let dnat6 = Rule::new([S::NfProto(SetKind::Ipv6Addr), S::Dnat("fd16::1".parse()?)]);
    let away = Rule::new([S::Interface(Direction::Out, Op::Ne, "lo".to_owned()), S::Counter]);
    let mut closed = base("closed", ChainKind::Filter, Hook::Forward, 10, vec![]);
    closed.base = closed.base.map(|base| Base { policy: Policy::Drop, ..base });
    let set = |name: &str, kind, elements| Set { name: name.to_owned(), kind, elements };
    let noted = Element { address: "10.0.0.7".parse()?, comment: Some("0b9c-uid".to_owned()) };
    let plain = Element { address: "10.0.0.8".parse()?, comment: None };
    let table =
        |name: &str, sets, chains| Table { family: Family::Inet, name: name.to_owned(), sets, chains };
    let one = table(
        "one",
        vec![set("v4", SetKind::Ipv4Addr, vec![noted, plain]), set("v6", SetKind::Ipv6Addr, vec![])],
        vec![
            base("in", ChainKind::Filter, Hook::Input, -150, filter_rules()?),
            base("pre", ChainKind::Nat, Hook::Prerouting, -100, vec![redirect, dnat4, dnat6]),
            base("post", ChainKind::Nat, Hook::Postrouting, 100, vec![snat4, snat6]),
            Chain { name: JUMP.to_owned(), base: None, rules: vec![Rule::new([S::Counter])] },
        ],
    );
    let two = table(
        "two",
        vec![],
        vec![
            base(
                "zones",
                ChainKind::Filter,
                Hook::Prerouting,
                -300,
                vec![Rule::new([S::SetCtZone(1)]), Rule::new([S::SetCtOriginalZone(2)])],
            ),
            base("out", ChainKind::Route, Hook::Output, -150, vec![away]),
            closed,
        ],
    );
    Ok(Ruleset { tables: vec![one, two] })
}

fn a_rule_set_is_read_back_as_written() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    ensure!(nft::dump(&netns)? == Ruleset::default());
    let wanted = everything()?;
    nft::apply(&netns, &wanted)?;
    let (found, wanted) = (nft::dump(&netns)?, wanted.canonical());
    ensure!(found == wanted, "found:\n{found}\nwanted:\n{wanted}");
    Ok(())
}

fn applying_is_idempotent() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let ruleset = everything()?;
    for _ in 0..3 {
        nft::apply(&netns, &ruleset)?;
        ensure!(nft::dump(&netns)? == ruleset.clone().canonical());
    }
    let tables: Vec<_> = ["one", "two", "never-there"].map(|name| (Family::Inet, name.to_owned())).into();
    for _ in 0..2 {
        nft::remove(&netns, &tables)?;
        ensure!(nft::dump(&netns)? == Ruleset::default());
    }
    Ok(())
}

fn a_refused_rule_is_named_and_rolls_the_transaction_back() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let good = everything()?;
    nft::apply(&netns, &good)?;
    let mut bad = good.clone();
    let chain = bad.tables[1].chains.last_mut().context("a chain")?;
    chain.rules.push(Rule::new([Statement::Verdict(Verdict::Jump("nowhere".to_owned()))]));
    bad.tables[0].chains.truncate(0);
    match nft::apply(&netns, &bad) {
        Err(Error::Refused { command, cause }) => {
            ensure!(command == "add rule inet two closed jump nowhere", "{command}");
            ensure!(cause.kind() == std::io::ErrorKind::NotFound, "{cause}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    ensure!(nft::dump(&netns)? == good.canonical());
    Ok(())
}

fn only_the_given_tables_are_touched() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let all = everything()?;
    nft::apply(&netns, &all)?;
    let first = Ruleset { tables: vec![Table { chains: vec![], ..all.tables[0].clone() }] };
    nft::apply(&netns, &first)?;
    let expected = Ruleset { tables: vec![first.tables[0].clone(), all.tables[1].clone()] };
    ensure!(nft::dump(&netns)? == expected.canonical());
    nft::replace(&netns, &first, &[(Family::Inet, "two".to_owned())])?;
    ensure!(nft::dump(&netns)? == first.canonical());
    // Other namespaces are not affected.
    ensure!(nft::dump(&Netns::create()?)? == Ruleset::default());
    Ok(())
}

fn set_elements_are_added_replaced_and_removed() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    nft::apply(&netns, &everything()?)?;
    let members = |set: &str| -> anyhow::Result<Vec<(String, Option<String>)>> {
        let found = nft::dump(&netns)?;
        let table = found.table("one").context("the table")?;
        let set = table.sets.iter().find(|found| found.name == set).context("the set")?;
        Ok(set.elements.iter().map(|e| (e.address.to_string(), e.comment.clone())).collect())
    };
    let element = |comment: &str| {
        anyhow::Ok(Element { address: "fd00::5".parse()?, comment: Some(comment.to_owned()) })
    };
    for _ in 0..2 {
        nft::add_element(&netns, "one", "v6", &element("pod-a")?)?;
        ensure!(members("v6")? == [("fd00::5".to_owned(), Some("pod-a".to_owned()))]);
    }
    nft::set_element(&netns, "one", "v6", &element("pod-b")?)?;
    ensure!(members("v6")? == [("fd00::5".to_owned(), Some("pod-b".to_owned()))]);
    for _ in 0..2 {
        nft::del_element(&netns, "one", "v6", "fd00::5".parse()?)?;
        ensure!(members("v6")?.is_empty());
    }
    ensure!(members("v4")?.len() == 2);
    nft::del_element(&netns, "one", "no-such-set", "fd00::5".parse()?)?;
    Ok(())
}

fn elements_must_fit_their_set() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    nft::apply(&netns, &everything()?)?;
    let element = Element { address: "fd00::5".parse()?, comment: None };
    let Err(error) = nft::add_element(&netns, "one", "v4", &element) else {
        anyhow::bail!("an IPv6 address went into an IPv4 set");
    };
    let error = error.to_string();
    ensure!(error.starts_with("nftables: add element inet one v4 { fd00::5 }: "), "{error}");
    Ok(())
}

/// As iptables-nft has them, beside chains of others in the same table.
fn chains_of_iptables_go_with_what_jumps_to_them() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let jump = |to: &str| Rule::new([Statement::Counter, Statement::Verdict(Verdict::Jump(to.to_owned()))]);
    let plain = |name: &str, rules| Chain { name: name.to_owned(), base: None, rules };
    let count = || Rule::new([Statement::Counter]);
    let table = |name: &str, ours: bool| {
        let mut output = vec![jump("OTHER"), count()];
        let mut chains = vec![plain("OTHER", vec![count()])];
        if ours {
            output.insert(1, jump("ISTIO_OUTPUT"));
            chains.push(plain("ISTIO_PRERT", vec![count()]));
            chains.push(plain("ISTIO_OUTPUT", vec![jump("ISTIO_PRERT"), count()]));
        }
        chains.push(base("OUTPUT", ChainKind::Filter, Hook::Output, 0, output));
        Table { family: Family::Inet, name: name.to_owned(), sets: vec![], chains }
    };
    let alone = |name: &str| Table {
        family: Family::Inet,
        name: name.to_owned(),
        sets: vec![],
        chains: vec![plain("ISTIO_OUTPUT", vec![count()])],
    };
    for v6 in [false, true] {
        let with = Ruleset { tables: vec![table("nat", true), table("mangle", true), alone("raw")] };
        nft::apply_to_ip(&netns, v6, &with)?;
        ensure!(iptables::remove_chains(&netns, &["ISTIO_PRERT", "ISTIO_OUTPUT"])? == 2);
        let without = Ruleset { tables: vec![table("nat", false), table("mangle", false), alone("raw")] };
        let found = nft::dump_ip(&netns, v6)?;
        ensure!(found == without.canonical(), "{found}");
        ensure!(iptables::remove_chains(&netns, &["ISTIO_PRERT", "ISTIO_OUTPUT"])? == 0);
    }
    Ok(())
}

fn sets_of_ipset_are_destroyed() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    iptables::destroy_set(&netns, "istio-inpod-probes-v4")?;
    iptables::create_set(&netns, "istio-inpod-probes-v4")?;
    ensure!(iptables::create_set(&netns, "istio-inpod-probes-v4").is_err(), "it is there");
    iptables::destroy_set(&netns, "istio-inpod-probes-v4")?;
    iptables::create_set(&netns, "istio-inpod-probes-v4")?;
    Ok(())
}
