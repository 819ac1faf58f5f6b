//! The tables inside a pod's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isthmus_model::{AgentPorts, HBONE_PORT, LOCAL_MARK};
use isthmus_sys::IpNet;
use isthmus_sys::nft::{
    Base, Chain, ChainKind, Direction, Family, Hook, Match, Op, Policy, Proto, Rule, Ruleset, SetKind, Side,
    Statement, Table, Verdict,
};

use super::config::{
    AGENT_MARK, CANARY_V4, CANARY_V6, EARLIER_MARK, GUARD, MANGLE, MARK_MASK, NAT, PodRules, RAW,
    SPOOFED_MARK, families, mark,
};

const OUTBOUND_PORT: u16 = AgentPorts::WELL_KNOWN.outbound;
const PLAINTEXT_PORT: u16 = AgentPorts::WELL_KNOWN.inbound_plaintext;
const DNS_PROXY_PORT: u16 = AgentPorts::WELL_KNOWN.dns;
const DNS_PORT: u16 = 53;
/// Conntrack zone of the DNS proxy's upstream queries. They may have the same addresses and ports as the application's
/// query that they forward; in one zone conntrack would take both for one connection. Of the original direction only: it
/// follows who sent the query, so that what the proxy answers to a query from port 53 is not taken for one.
const DNS_ZONE: u16 = 1;
/// Conntrack zone of the agent's connections to the application. They have the client's address, and may have a port that
/// the client uses, too. Answers are found without a zone: nothing distinguishes them before conntrack has seen them.
const LOCAL_ZONE: u16 = 2;

/// Flags of a TCP header.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const ACCEPT: Statement = Statement::Verdict(Verdict::Accept);
const TCP: Statement = Statement::L4Proto(Proto::Tcp);

/// The tables of a pod: nat for redirection, mangle for marks, raw for conntrack zones, and the guard when it is enabled.
#[must_use]
pub fn pod_ruleset(rules: &PodRules) -> Ruleset {
    let mut tables = vec![nat(rules), mangle(), raw(rules.dns_capture)];
    if rules.closing || rules.canary {
        tables.push(guard(rules));
    }
    Ruleset { tables }
}

/// The tables of a pod that has left the mesh, while the agent still carries connections of it: they redirect nothing, and
/// go on translating what they have redirected.
pub(super) fn released_ruleset() -> Ruleset {
    let nat = hooked(NAT, (ChainKind::Nat, ChainKind::Nat, -100), vec![], vec![]);
    Ruleset { tables: vec![nat, mangle(), raw(true)] }
}

/// The tables of a pod just before it is enrolled: they only make conntrack see its connections, and mark them.
pub(super) fn tracking_ruleset() -> Ruleset {
    let chain = |name: &str, hook| {
        let unmarked = Statement::CtMark { mask: MARK_MASK, op: Op::Eq, value: 0 };
        let earlier = Statement::SetCtMark { keep: !MARK_MASK, set: EARLIER_MARK };
        let base = Base { kind: ChainKind::Filter, hook, priority: -150, policy: Policy::Accept };
        let rules = vec![rule([TCP, mark(Op::Ne, AGENT_MARK), unmarked, earlier])];
        Chain { name: name.to_owned(), base: Some(base), rules }
    };
    let chains = vec![chain("prerouting", Hook::Prerouting), chain("output", Hook::Output)];
    Ruleset { tables: vec![Table { family: Family::Inet, name: GUARD.to_owned(), sets: vec![], chains }] }
}

fn nat(rules: &PodRules) -> Table {
    let families = families(rules.ipv6, rules.probe_v4, rules.probe_v6);
    hooked(
        NAT,
        (ChainKind::Nat, ChainKind::Nat, -100),
        nat_prerouting(rules, &families),
        nat_output(rules, &families),
    )
}

/// Inbound: probes and the agent's own connections to the application pass, HBONE (15008) has its own listener,
/// everything else is redirected to the plaintext listener.
fn nat_prerouting(rules: &PodRules, families: &[(SetKind, IpAddr)]) -> Vec<Rule> {
    let mut chain = Vec::new();
    for name in &rules.virtual_interfaces {
        let from = || Statement::Interface(Direction::In, Op::Eq, name.clone());
        chain.push(rule([from(), TCP, Statement::Counter, Statement::Redirect(OUTBOUND_PORT)]));
        chain.push(rule([from(), TCP, Statement::Counter, Statement::Verdict(Verdict::Return)]));
    }
    if rules.ingress_mode {
        return chain;
    }
    for (_, probe) in families {
        let from = || Statement::Address(Side::Source, Op::Eq, Match::Net(IpNet::from(*probe)));
        match &rules.probe_ports {
            None => chain.push(rule([TCP, from(), Statement::Counter, ACCEPT])),
            Some(ports) => chain.extend(ports.iter().map(|port| {
                let to = Statement::Port(Proto::Tcp, Side::Destination, Op::Eq, *port);
                rule([from(), to, Statement::Counter, ACCEPT])
            })),
        }
    }
    chain.extend(families.iter().map(|(family, _)| {
        let port = Statement::Port(Proto::Tcp, Side::Destination, Op::Ne, HBONE_PORT);
        let redirect = Statement::Redirect(PLAINTEXT_PORT);
        rule([not_loopback(*family), port, mark(Op::Ne, AGENT_MARK), Statement::Counter, redirect])
    }));
    chain
}

/// Outbound: answers to probes and on connections with a spoofed source pass, the application's calls to its own
/// address pass, DNS is redirected to the DNS proxy, all other TCP to the outbound listener; the agent's own packets
/// are left alone.
fn nat_output(rules: &PodRules, families: &[(SetKind, IpAddr)]) -> Vec<Rule> {
    let not_agent = || mark(Op::Ne, AGENT_MARK);
    let mut chain: Vec<Rule> = families
        .iter()
        .map(|(_, probe)| {
            let to = Statement::Address(Side::Destination, Op::Eq, Match::Net(IpNet::from(*probe)));
            rule([TCP, to, Statement::Counter, ACCEPT])
        })
        .collect();
    if rules.dns_capture {
        let redirect = || Statement::Redirect(DNS_PROXY_PORT);
        let away = Statement::Interface(Direction::Out, Op::Ne, "lo".to_owned());
        let udp = Statement::Port(Proto::Udp, Side::Destination, Op::Eq, DNS_PORT);
        chain.push(rule([away, not_agent(), udp, Statement::Counter, redirect()]));
        chain.extend(families.iter().map(|(family, _)| {
            let tcp = Statement::Port(Proto::Tcp, Side::Destination, Op::Eq, DNS_PORT);
            rule([not_loopback(*family), tcp, not_agent(), Statement::Counter, redirect()])
        }));
    }
    chain.push(rule([TCP, mark(Op::Eq, SPOOFED_MARK), Statement::Counter, ACCEPT]));
    chain.extend(families.iter().map(|(family, _)| {
        let local = Statement::Interface(Direction::Out, Op::Eq, "lo".to_owned());
        rule([local, not_loopback(*family), Statement::Counter, ACCEPT])
    }));
    chain.extend(families.iter().map(|(family, _)| {
        let redirect = Statement::Redirect(OUTBOUND_PORT);
        rule([TCP, not_loopback(*family), not_agent(), Statement::Counter, redirect])
    }));
    chain
}

/// Marks the connections that the agent opens towards the application with the client's source address, so that the
/// application's answers, whose destination is the real client, are routed back to the agent. They are marked where they
/// start, since the pod may translate their destination: to a guest behind a bridge of its own, whose answers arrive at that
/// bridge.
fn mangle() -> Table {
    let set_mark = || Statement::SetCtMark { keep: !MARK_MASK, set: SPOOFED_MARK };
    let answer = || Statement::CtMark { mask: MARK_MASK, op: Op::Eq, value: SPOOFED_MARK };
    let not_loopback = Statement::Interface(Direction::In, Op::Ne, "lo".to_owned());
    let local = Statement::Interface(Direction::Out, Op::Eq, "lo".to_owned());
    let return_ = Statement::Verdict(Verdict::Return);
    hooked(
        MANGLE,
        (ChainKind::Filter, ChainKind::Route, -150),
        vec![
            rule([mark(Op::Eq, AGENT_MARK), Statement::Counter, set_mark()]),
            rule([not_loopback, answer(), Statement::Counter, Statement::SetMarkFromCt]),
        ],
        vec![
            rule([local, mark(Op::Eq, AGENT_MARK), Statement::Counter, set_mark()]),
            // With the mark of an answer they would be delivered here, whatever their destination is translated to.
            rule([mark(Op::Eq, AGENT_MARK), Statement::Counter, return_]),
            rule([answer(), Statement::Counter, Statement::SetMarkFromCt]),
        ],
    )
}

fn raw(dns_capture: bool) -> Table {
    let mut output = Vec::new();
    if dns_capture {
        let query = Statement::Port(Proto::Udp, Side::Destination, Op::Eq, DNS_PORT);
        let zone = Statement::SetCtOriginalZone(DNS_ZONE);
        output.push(rule([query, mark(Op::Eq, AGENT_MARK), Statement::Counter, zone]));
    }
    let mask = MARK_MASK | LOCAL_MARK;
    let to_application = Statement::Mark { mask, op: Op::Eq, value: AGENT_MARK | LOCAL_MARK };
    output.push(rule([to_application, Statement::Counter, Statement::SetCtOriginalZone(LOCAL_ZONE)]));
    hooked(RAW, (ChainKind::Filter, ChainKind::Filter, -300), vec![], output)
}

/// The guard, while a pod is closed, around canaries, and of connections that are older than enrolment. Closing runs last,
/// where a redirected packet leaves through `lo`, and drops every TCP packet that was neither redirected nor sent by the
/// agent. An ingress gateway answers its clients directly, which closing would drop: its chain stays open.
fn guard(rules: &PodRules) -> Table {
    let mut chain = vec![reopened()];
    if rules.canary {
        chain
            .extend(canaries(rules.ipv6).into_iter().map(|to| rule([to, Statement::Verdict(Verdict::Drop)])));
    }
    if rules.closing && !rules.ingress_mode {
        chain.push(rule([Statement::Interface(Direction::Out, Op::Eq, "lo".to_owned()), ACCEPT]));
        chain.push(rule([mark(Op::Eq, AGENT_MARK), ACCEPT]));
        chain.push(rule([earlier(), ACCEPT]));
        chain.extend(families(rules.ipv6, rules.probe_v4, rules.probe_v6).into_iter().map(|(_, probe)| {
            let to = Statement::Address(Side::Destination, Op::Eq, Match::Net(IpNet::from(probe)));
            rule([to, ACCEPT])
        }));
        // A reset carries nothing, and spares clients of a pod without agent a timeout.
        let reset = Statement::TcpFlags { mask: RST, op: Op::Eq, value: RST };
        chain.push(rule([reset, ACCEPT]));
        chain.push(rule([TCP, Statement::Counter, Statement::Verdict(Verdict::Drop)]));
    }
    let base =
        |hook, priority| Some(Base { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept });
    let mut chains = vec![
        Chain { name: "postrouting".to_owned(), base: base(Hook::Postrouting, 0), rules: chain },
        Chain { name: "prerouting".to_owned(), base: base(Hook::Prerouting, -150), rules: vec![reopened()] },
    ];
    if rules.canary {
        let rules = canaries(rules.ipv6).into_iter().map(unaccepted).collect();
        chains.push(Chain { name: "output".to_owned(), base: base(Hook::Output, -200), rules });
    }
    Table { family: Family::Inet, name: GUARD.to_owned(), sets: vec![], chains }
}

fn earlier() -> Statement {
    Statement::CtMark { mask: MARK_MASK, op: Op::Eq, value: EARLIER_MARK }
}

/// A connection that is older than enrolment passes until it ends, and no other takes its place: as long as conntrack takes
/// it for open, a new one with its addresses and ports would pass with it.
fn reopened() -> Rule {
    let begins = Statement::TcpFlags { mask: SYN | ACK, op: Op::Eq, value: SYN };
    rule([begins, earlier(), Statement::CtEstablished, Statement::Counter, Statement::Verdict(Verdict::Drop)])
}

/// Of a canary's connection only the SYN and the final reset pass, so the agent's listener answers and the agent never
/// accepts. Before the nat tables rewrite the destination.
fn unaccepted(to: Statement) -> Rule {
    let flags = Statement::TcpFlags { mask: SYN | RST, op: Op::Eq, value: 0 };
    rule([to, flags, Statement::Verdict(Verdict::Drop)])
}

fn canaries(ipv6: bool) -> Vec<Statement> {
    families(ipv6, CANARY_V4, CANARY_V6)
        .into_iter()
        .map(|(_, canary)| Statement::Address(Side::Destination, Op::Eq, Match::Net(IpNet::from(canary))))
        .collect()
}

/// A table whose base chains only jump to `istio-<hook>` chains: istio-cni's layout, which other tools rely on.
fn hooked(
    name: &str,
    (prerouting, output, priority): (ChainKind, ChainKind, i32),
    inbound: Vec<Rule>,
    outbound: Vec<Rule>,
) -> Table {
    let base = |name: &str, kind, hook| Chain {
        name: name.to_owned(),
        base: Some(Base { kind, hook, priority, policy: Policy::Accept }),
        rules: vec![rule([Statement::Verdict(Verdict::Jump(format!("istio-{name}")))])],
    };
    let chain = |name: &str, rules| Chain { name: name.to_owned(), base: None, rules };
    let chains = vec![
        base("prerouting", prerouting, Hook::Prerouting),
        base("output", output, Hook::Output),
        chain("istio-prerouting", inbound),
        chain("istio-output", outbound),
    ];
    Table { family: Family::Inet, name: name.to_owned(), sets: vec![], chains }
}

fn not_loopback(family: SetKind) -> Statement {
    let loopback = match family {
        SetKind::Ipv4Addr => IpAddr::from(Ipv4Addr::LOCALHOST),
        SetKind::Ipv6Addr => Ipv6Addr::LOCALHOST.into(),
    };
    Statement::Address(Side::Destination, Op::Ne, Match::Net(IpNet::from(loopback)))
}

fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule::new(statements)
}
