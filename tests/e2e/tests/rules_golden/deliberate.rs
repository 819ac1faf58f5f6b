//! Where our rules differ from istio-cni's on purpose. Everything else must be equal.

use anyhow::{Context as _, ensure};

/// istio-cni's zone of the DNS proxy's queries, and of their answers.
const DNS: [&str; 2] = [
    "add rule inet istio-ambient-raw istio-output udp dport 53 meta mark and 0xfff == 0x539 counter ct zone set 1",
    "add rule inet istio-ambient-raw istio-prerouting udp sport 53 meta mark and 0xfff != 0x539 counter ct zone set 1",
];
/// Ours is of the direction of the query: otherwise what the proxy answers to an application's query from port 53 is taken
/// for a query of its own, is not translated back, and leaves from the proxy's port. Answers need no rule then.
const OUR_DNS: &str = "add rule inet istio-ambient-raw istio-output udp dport 53 meta mark and 0xfff == 0x539 counter ct original zone set 1";
/// The agent's connections to applications borrow the client's address. In one zone they and the client's own connections
/// are one connection to conntrack when their ports are equal: one of them hangs, or dies without a reset.
const OUR_ZONE: &str = "add rule inet istio-ambient-raw istio-output meta mark and 0x1fff == 0x1539 counter ct original zone set 2";
/// The table that istio-cni writes where DNS is captured, and we always.
const RAW: [&str; 8] = [
    "add table inet istio-ambient-raw",
    "flush table inet istio-ambient-raw",
    "add chain inet istio-ambient-raw prerouting { type filter hook prerouting priority -300 ; }",
    "add chain inet istio-ambient-raw output { type filter hook output priority -300 ; }",
    "add chain inet istio-ambient-raw istio-prerouting",
    "add chain inet istio-ambient-raw istio-output",
    "add rule inet istio-ambient-raw prerouting jump istio-prerouting",
    "add rule inet istio-ambient-raw output jump istio-output",
];
/// istio-cni's way back to the agent, for answers that are sent in the pod itself.
const ANSWERS: &str = "add rule inet istio-ambient-mangle istio-output ct mark and 0xfff == 0x111 counter meta mark set ct mark";
/// A pod may translate the application's address to a guest behind a bridge. So connections to the application are marked
/// where they start and not where they arrive, the agent's own packets of them are left alone, and answers that come in
/// through an interface are led to the agent, too.
const OUR_MARKS: [&str; 2] = [
    "add rule inet istio-ambient-mangle istio-output oifname lo meta mark & 0xfff == 0x539 counter ct mark set ct mark & \
     0xfffff000 | 0x111",
    "add rule inet istio-ambient-mangle istio-output meta mark & 0xfff == 0x539 counter return",
];
const OUR_ANSWERS: &str = "add rule inet istio-ambient-mangle istio-prerouting iifname != lo ct mark and 0xfff == 0x111 \
                           counter meta mark set ct mark";

/// istio-cni's commands with these differences. A host has none.
pub(crate) fn deliberate(golden: &str) -> anyhow::Result<String> {
    if !golden.contains("istio-ambient-mangle") {
        return Ok(golden.to_owned());
    }
    let mut lines: Vec<&str> = golden.lines().collect();
    if golden.contains("istio-ambient-raw") {
        ensure!(
            DNS.iter().all(|line| lines.contains(line)),
            "istio-cni's zones are not those that ours replace"
        );
        lines.retain(|line| !DNS.contains(line));
        lines.push(OUR_DNS);
    } else {
        lines.extend(RAW);
    }
    lines.push(OUR_ZONE);
    let answers = lines.iter().position(|line| *line == ANSWERS).context("no way back to the agent")?;
    lines.splice(answers..answers, OUR_MARKS);
    lines.push(OUR_ANSWERS);
    Ok(lines.join("\n"))
}
