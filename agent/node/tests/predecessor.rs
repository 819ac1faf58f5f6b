//! Rules that the real iptables has written, in both of its back ends and both families, as istio-cni does in pods and on
//! the host: found and removed by netlink and socket options. Fails where the programs of iptables are missing.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab;
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::netns::Netns;

/// What istio-cni writes into a pod that has DNS captured.
const POD: &str = "\
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
:MINE - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A OUTPUT -p tcp --dport 9 -j MINE
-A PREROUTING -j ISTIO_PRERT
-A MINE -p tcp -j RETURN
-A ISTIO_PRERT -s PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d PROBE -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d LOOPBACK -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-port 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d LOOPBACK -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
COMMIT
";

/// And into the host's namespace, but for the match of the set, which needs one.
const HOST: &str = "\
*nat
:ISTIO_POSTRT - [0:0]
-I POSTROUTING 1 -j ISTIO_POSTRT
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A ISTIO_POSTRT -m owner --socket-exists -p tcp -j SNAT --to-source 169.254.7.127
COMMIT
";

fn main() -> ExitCode {
    lab::main(&lab::tests![a_pod_of_istio_cni_is_taken_over, the_host_of_istio_cni_is_taken_over])
}

fn run(netns: &Netns, program: &str, input: &str) -> Result<String> {
    let ran = netns.run_thread(|| -> Result<_> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The lock of iptables is a file of the host.
        let mut child =
            command.env("XTABLES_LOCKFILE", "/dev/null").spawn().with_context(|| program.to_owned())?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    ensure!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8(ran.stdout)?)
}

/// The rules without comments and counters, in order.
fn rules_of(saved: &str) -> Vec<String> {
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
}

fn a_pod_of_istio_cni_is_taken_over() -> Result<()> {
    for back_end in ["nft", "legacy"] {
        for (program, probe, loopback) in [
            ("iptables", "169.254.7.127", "127.0.0.1/32"),
            ("ip6tables", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "::1/128"),
        ] {
            let netns = Netns::create()?;
            let (save, restore) =
                (format!("{program}-{back_end}-save"), format!("{program}-{back_end}-restore"));
            let text = POD.replace("PROBE", probe).replace("LOOPBACK", loopback);
            run(&netns, &restore, &text)?;
            let before = rules_of(&run(&netns, &save, "")?);
            rules::apply_pod(&netns, &PodRules::default())?;
            ensure!(rules::remove_predecessors_pod(&netns)? == 3, "{back_end} {program}");
            let after = rules_of(&run(&netns, &save, "")?);
            let kept: Vec<_> = before.into_iter().filter(|line| !line.contains("ISTIO_")).collect();
            ensure!(after == kept, "{back_end} {program}: {after:#?}, not {kept:#?}");
            ensure!(after.iter().any(|line| line.contains("-j MINE")), "{after:#?}");
            ensure!(rules::remove_predecessors_pod(&netns)? == 0);
            ensure!(rules::compare_pod(&netns, &PodRules::default())?.is_none(), "ours are there");
            rules::remove_pod(&netns)?;
        }
    }
    Ok(())
}

fn the_host_of_istio_cni_is_taken_over() -> Result<()> {
    for back_end in ["nft", "legacy"] {
        let netns = Netns::create()?;
        run(&netns, &format!("iptables-{back_end}-restore"), HOST)?;
        ensure!(rules::remove_predecessors_host(&netns)? == 1, "{back_end}");
        let after = rules_of(&run(&netns, &format!("iptables-{back_end}-save"), "")?);
        ensure!(!after.iter().any(|line| line.contains("ISTIO_")), "{after:#?}");
        ensure!(after.iter().any(|line| line.contains("MASQUERADE")), "{after:#?}");
    }
    Ok(())
}
