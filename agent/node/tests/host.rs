//! The real kernel behind the node role: namespaces found and refused, rules put in and taken out, probe addresses with
//! their owners. Passes as root and as an ordinary user.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use isthmus_kit::lab;
use isthmus_node::config::{KubeletUid, ProbeAddresses};
use isthmus_node::kernel::Probe;
use isthmus_node::pod::Capture;
use isthmus_node::{Config, Host, Kernel as _, Wanted};
use isthmus_proto::enroll::Rules;
use isthmus_sys::netns::Netns;
use isthmus_sys::{nft, route};
use nix::mount::{MsFlags, mount};

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const CONTAINER: &str = "6d4b1c9e2f7a8053b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4";

fn main() -> ExitCode {
    lab::main(&lab::tests![
        only_a_pods_namespace_in_the_runtimes_folder_is_opened,
        a_namespace_file_is_found_by_the_pods_address,
        a_process_leads_to_the_pods_namespace_if_it_owns_the_address,
        rules_of_a_pod_come_and_go,
        probe_addresses_belong_to_a_pod,
    ])
}

/// Folders of a host, and the real kernel that looks into them.
struct World {
    dir: tempfile::TempDir,
    kernel: Host,
}

fn world() -> anyhow::Result<World> {
    let dir = tempfile::tempdir()?;
    for folder in ["netns", "proc"] {
        std::fs::create_dir(dir.path().join(folder))?;
    }
    let kernel = Host::new(&Config {
        node_name: "node-1".into(),
        run_dir: dir.path().join("run"),
        zds_socket: dir.path().join("zds.sock"),
        netns_dir: dir.path().join("netns"),
        proc_dir: dir.path().join("proc"),
        host_netns: "/proc/self/ns/net".into(),
        dns_capture: true,
        ipv6: true,
        rules: Rules::default(),
        probes: ProbeAddresses::default(),
        kubelet: KubeletUid::Fixed(0),
        reconcile_on_start: true,
    })?;
    Ok(World { dir, kernel })
}

/// A namespace with an address, as a pod has.
fn pod_netns(address: &str) -> anyhow::Result<Netns> {
    let netns = Netns::create()?;
    route::add_address(&netns, "lo", address.parse()?)?;
    Ok(netns)
}

/// Keeps a namespace as container runtimes do: a file that it is mounted on.
fn keep(netns: &Netns, file: &Path) -> anyhow::Result<()> {
    use std::os::fd::AsRawFd as _;
    std::fs::write(file, "")?;
    let source = format!("/proc/self/fd/{}", netns.fd().as_raw_fd());
    mount(Some(source.as_str()), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind mount")
}

fn wanted(ip: &str) -> anyhow::Result<[Wanted; 1]> {
    Ok([Wanted { uid: UID.into(), ips: vec![ip.parse()?] }])
}

fn reason<T, E: ToString>(result: Result<T, E>) -> String {
    result.err().map_or_else(String::new, |error| error.to_string())
}

fn only_a_pods_namespace_in_the_runtimes_folder_is_opened() -> anyhow::Result<()> {
    let world = world()?;
    let (inside, outside) = (world.dir.path().join("netns/cni-1"), world.dir.path().join("cni-2"));
    let pod = Netns::create()?;
    keep(&pod, &inside)?;
    keep(&pod, &outside)?;
    ensure!(world.kernel.open(&inside)?.id() == pod.id());
    let refused = reason(world.kernel.open(&outside));
    ensure!(refused.contains("not in"), "{refused}");

    let host = world.dir.path().join("netns/host");
    keep(&Netns::current()?, &host)?;
    let refused = reason(world.kernel.open(&host));
    ensure!(refused.contains("the host's"), "{refused}");
    Ok(())
}

fn a_namespace_file_is_found_by_the_pods_address() -> anyhow::Result<()> {
    let world = world()?;
    let (pod, other) = (pod_netns("10.11.0.5/24")?, pod_netns("10.11.0.6/24")?);
    keep(&other, &world.dir.path().join("netns/cni-1"))?;
    keep(&pod, &world.dir.path().join("netns/cni-2"))?;
    let found = world.kernel.find(&wanted("10.11.0.5")?)?;
    ensure!(found.values().map(Netns::id).collect::<Vec<_>>() == [pod.id()]);
    ensure!(world.kernel.find(&wanted("10.11.0.7")?)?.is_empty());

    // Two sandboxes with one address: one is stale, and nobody can tell which.
    keep(&pod_netns("10.11.0.5/24")?, &world.dir.path().join("netns/cni-3"))?;
    ensure!(world.kernel.find(&wanted("10.11.0.5")?)?.is_empty());
    Ok(())
}

/// What `/proc` shows of a container's process.
fn process(world: &World, pid: u32, netns: &Netns, started: u64) -> anyhow::Result<()> {
    let folder = world.dir.path().join(format!("proc/{pid}"));
    std::fs::create_dir_all(folder.join("ns"))?;
    std::fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{UID}/{CONTAINER}\n"))?;
    let before = (4..22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
    std::fs::write(folder.join("stat"), format!("{pid} (app) S {before} {started} 0\n"))?;
    keep(netns, &folder.join("ns/net"))
}

fn a_process_leads_to_the_pods_namespace_if_it_owns_the_address() -> anyhow::Result<()> {
    let world = world()?;
    let (pod, later, stranger) = (pod_netns("10.11.0.5/24")?, pod_netns("10.11.0.5/24")?, Netns::create()?);
    // A process of the pod that has entered another namespace is no witness, and neither is one in the host's.
    process(&world, 10, &stranger, 1)?;
    process(&world, 11, &Netns::current()?, 2)?;
    ensure!(world.kernel.find(&wanted("10.11.0.5")?)?.is_empty());
    process(&world, 13, &later, 20)?;
    process(&world, 12, &pod, 3)?;
    process(&world, 14, &later, 4)?;
    let found = world.kernel.find(&wanted("10.11.0.5")?)?;
    ensure!(found.values().map(Netns::id).collect::<Vec<_>>() == [pod.id()], "the oldest process counts");
    Ok(())
}

fn rules_of_a_pod_come_and_go() -> anyhow::Result<()> {
    let world = world()?;
    let pod = Netns::create()?;
    let capture = Capture { dns: true, ipv6: true, inbound: true, virtual_interfaces: Vec::new() };
    world.kernel.apply_pod(&pod, &capture)?;
    let once = nft::dump(&pod)?;
    ensure!(once.tables.len() == 3, "{once:?}");
    world.kernel.apply_pod(&pod, &capture)?;
    ensure!(nft::dump(&pod)? == once, "twice is once");
    world.kernel.apply_pod(&pod, &Capture { dns: false, ..capture })?;
    ensure!(nft::dump(&pod)?.tables.len() == 2, "what is no longer wanted is gone");
    world.kernel.remove_pod(&pod)?;
    world.kernel.remove_pod(&pod)?;
    ensure!(nft::dump(&pod)?.tables.is_empty());
    ensure!(route::local_routes(&pod, false, 100)?.is_empty());
    Ok(())
}

fn probe_addresses_belong_to_a_pod() -> anyhow::Result<()> {
    let kernel = world()?.kernel;
    let probe = |ip: &str, uid: &str| -> anyhow::Result<Probe> {
        Ok(Probe { ip: ip.parse::<IpAddr>()?, uid: uid.into() })
    };
    ensure!(kernel.add_probe(&probe("10.11.0.5", "a")?).is_err(), "there is no set yet");
    kernel.apply_host()?;
    for (ip, uid) in [("10.11.0.5", "a"), ("fd00::5", "a"), ("10.11.0.5", "a")] {
        kernel.add_probe(&probe(ip, uid)?)?;
    }
    ensure!(kernel.probes()?.len() == 2);
    // The address is another pod's now; the first one, which leaves late, must not take it away.
    kernel.add_probe(&probe("10.11.0.5", "b")?)?;
    kernel.remove_probe(&probe("10.11.0.5", "a")?)?;
    ensure!(kernel.probes()?.contains(&probe("10.11.0.5", "b")?));
    // A restarted node role keeps what is there.
    kernel.apply_host()?;
    ensure!(kernel.probes()?.len() == 2);
    kernel.remove_probe(&probe("10.11.0.5", "b")?)?;
    kernel.remove_probe(&probe("fd00::5", "a")?)?;
    kernel.remove_probe(&probe("fd00::5", "a")?)?;
    ensure!(kernel.probes()?.is_empty());
    Ok(())
}
