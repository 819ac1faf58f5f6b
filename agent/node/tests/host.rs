//! The node role on a real kernel: network namespaces found and refused, rules written and removed, probe sets and the
//! pods that own their entries. Passes as root and as an ordinary user.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use isthmus_kit::lab;
use isthmus_model::PodRef;
use isthmus_node::capture::{Gate, Uncapturable};
use isthmus_node::config::{KubeletUid, ProbeAddresses};
use isthmus_node::kernel::ProbeTarget;
use isthmus_node::pod::CaptureConfig;
use isthmus_node::{Config, HostKernel, Kernel as _, NetnsQuery};
use isthmus_proto::enroll::Rules;
use isthmus_sys::netns::Netns;
use isthmus_sys::{nft, route};
use nix::mount::{MsFlags, mount};

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const OTHER: &str = "1a1b1c1d-4b5a-6978-8796-a5b4c3d2e1f0";
const CONTAINER: &str = "6d4b1c9e2f7a8053b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4";

fn main() -> ExitCode {
    lab::main(&lab::tests![
        a_namespace_is_opened_wherever_the_runtime_keeps_it,
        an_address_is_no_evidence_of_a_pods_namespace,
        a_recorded_sandbox_is_found_again_after_a_restart,
        a_namespace_with_another_pods_process_is_refused,
        a_process_yields_the_namespace_that_has_the_pods_address,
        a_container_of_crio_leads_to_its_pod,
        pod_rules_are_applied_idempotently_and_removed,
        the_hosts_rules_go_when_no_pod_is_left,
        a_probe_entry_is_removed_only_by_its_pod,
    ])
}

/// Folders of a host, and the real kernel that reads them.
struct HostDirs {
    dir: tempfile::TempDir,
    kernel: HostKernel,
}

fn host() -> anyhow::Result<HostDirs> {
    let dir = tempfile::tempdir()?;
    for folder in ["netns", "proc"] {
        std::fs::create_dir(dir.path().join(folder))?;
    }
    let kernel = HostDirs::kernel(dir.path())?;
    Ok(HostDirs { dir, kernel })
}

impl HostDirs {
    fn kernel(dir: &Path) -> anyhow::Result<HostKernel> {
        Ok(HostKernel::new(&Config {
            node_name: "node-1".into(),
            run_dir: dir.join("run"),
            zds_socket: dir.join("zds.sock"),
            netns_dir: dir.join("netns"),
            proc_dir: dir.join("proc"),
            host_netns: "/proc/self/ns/net".into(),
            dns_capture: true,
            ipv6: true,
            rules: Rules::default(),
            probes: ProbeAddresses::default(),
            kubelet: KubeletUid::Fixed(0),
            uncapturable: Uncapturable::Refuse,
            own_stack_classes: vec!["kata*".to_owned()],
            reconcile_on_start: true,
        })?)
    }
}

/// A network namespace with an address, as a pod has.
fn pod_netns(address: &str) -> anyhow::Result<Netns> {
    let netns = Netns::create()?;
    route::add_address(&netns, "lo", address.parse()?)?;
    Ok(netns)
}

/// Keeps a namespace as container runtimes do: bind-mounted on a file.
fn keep(netns: &Netns, file: &Path) -> anyhow::Result<()> {
    use std::os::fd::AsRawFd as _;
    std::fs::write(file, "")?;
    let source = format!("/proc/self/fd/{}", netns.fd().as_raw_fd());
    mount(Some(source.as_str()), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind mount")
}

fn pod_ref() -> PodRef {
    PodRef { uid: UID.into(), namespace: "sample".into(), name: "a".into(), service_account: "sa".into() }
}

fn query(ip: &str) -> anyhow::Result<[NetnsQuery; 1]> {
    Ok([NetnsQuery { pod: pod_ref(), ips: vec![ip.parse()?], containers: vec![CONTAINER.to_owned()] }])
}

fn reason<T, E: ToString>(result: Result<T, E>) -> String {
    result.err().map_or_else(String::new, |error| error.to_string())
}

fn a_namespace_is_opened_wherever_the_runtime_keeps_it() -> anyhow::Result<()> {
    let host = host()?;
    let (file, elsewhere) = (host.dir.path().join("netns/cni-1"), host.dir.path().join("cni-2"));
    let pod = Netns::create()?;
    keep(&pod, &file)?;
    keep(&pod, &elsewhere)?;
    process(&host, 10, UID, &pod, 1)?;
    // The third is the host's name of a file in the folder that is mounted elsewhere; the last is Docker's shape, as the host
    // has it: so is /proc.
    for path in [file, elsewhere, "/nowhere/netns/cni-1".into(), "/proc/10/ns/net".into()] {
        ensure!(host.kernel.open_netns(&path, &UID.into())?.id() == pod.id(), "{}", path.display());
    }
    let host_file = host.dir.path().join("netns/host");
    keep(&Netns::current()?, &host_file)?;
    let refused = reason(host.kernel.open_netns(&host_file, &UID.into()));
    ensure!(refused.contains("the host's"), "{refused}");
    Ok(())
}

/// The pod's processes are gone; a pod out of the mesh has put its address on its own loopback interface.
fn an_address_is_no_evidence_of_a_pods_namespace() -> anyhow::Result<()> {
    let host = host()?;
    let stranger = pod_netns("10.11.0.5/32")?;
    keep(&stranger, &host.dir.path().join("netns/cni-1"))?;
    process(&host, 10, OTHER, &stranger, 1)?;
    ensure!(host.kernel.find_netns(&query("10.11.0.5")?)?.is_empty(), "a stranger's namespace was taken");
    Ok(())
}

fn a_recorded_sandbox_is_found_again_after_a_restart() -> anyhow::Result<()> {
    let host = host()?;
    let (pod, file) = (pod_netns("10.11.0.5/24")?, host.dir.path().join("netns/cni-1"));
    keep(&pod, &file)?;
    host.kernel.open_netns(&file, &UID.into())?;
    // No process of the pod is visible; its successor has only the record.
    let restarted = HostDirs::kernel(host.dir.path())?;
    let found = restarted.find_netns(&query("10.11.0.5")?)?;
    ensure!(found.values().map(Netns::id).collect::<Vec<_>>() == [pod.id()]);
    ensure!(restarted.find_netns(&query("10.11.0.7")?)?.is_empty(), "its address is another one");

    // The file names another namespace now.
    nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH)?;
    keep(&pod_netns("10.11.0.5/24")?, &file)?;
    ensure!(restarted.find_netns(&query("10.11.0.5")?)?.is_empty(), "another namespace was taken");
    restarted.forget_netns(&UID.into());
    ensure!(std::fs::read_dir(host.dir.path().join("run/sandboxes"))?.count() == 0);
    Ok(())
}

fn a_namespace_with_another_pods_process_is_refused() -> anyhow::Result<()> {
    let host = host()?;
    let (pod, file) = (pod_netns("10.11.0.5/24")?, host.dir.path().join("netns/cni-1"));
    keep(&pod, &file)?;
    process(&host, 10, UID, &pod, 1)?;
    ensure!(host.kernel.open_netns(&file, &UID.into())?.id() == pod.id());
    process(&host, 11, OTHER, &pod, 2)?;
    let refused = reason(host.kernel.open_netns(&file, &UID.into()));
    ensure!(refused.contains(OTHER) && refused.contains("is refused"), "{refused}");
    ensure!(host.kernel.find_netns(&query("10.11.0.5")?)?.is_empty(), "it was found nevertheless");
    Ok(())
}

/// A container's process as `/proc` shows it.
fn process(host: &HostDirs, pid: u32, uid: &str, netns: &Netns, started: u64) -> anyhow::Result<()> {
    let folder = host.dir.path().join(format!("proc/{pid}"));
    std::fs::create_dir_all(folder.join("ns"))?;
    std::fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{uid}/{CONTAINER}\n"))?;
    let before = (4..22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
    std::fs::write(folder.join("stat"), format!("{pid} (app) S {before} {started} 0\n"))?;
    keep(netns, &folder.join("ns/net"))
}

fn a_process_yields_the_namespace_that_has_the_pods_address() -> anyhow::Result<()> {
    let host = host()?;
    let (pod, later, stranger) = (pod_netns("10.11.0.5/24")?, pod_netns("10.11.0.5/24")?, Netns::create()?);
    // A process that has entered another namespace does not count, nor does one in the host's.
    process(&host, 10, UID, &stranger, 1)?;
    process(&host, 11, UID, &Netns::current()?, 2)?;
    ensure!(host.kernel.find_netns(&query("10.11.0.5")?)?.is_empty());
    process(&host, 13, UID, &later, 20)?;
    process(&host, 12, UID, &pod, 3)?;
    process(&host, 14, UID, &later, 4)?;
    let found = host.kernel.find_netns(&query("10.11.0.5")?)?;
    ensure!(found.values().map(Netns::id).collect::<Vec<_>>() == [pod.id()], "the oldest process decides");
    Ok(())
}

/// CRI-O's cgroups may name the container only; which pod's that is, the API server says.
fn a_container_of_crio_leads_to_its_pod() -> anyhow::Result<()> {
    let host = host()?;
    let (pod, file) = (pod_netns("10.11.0.5/24")?, host.dir.path().join("netns/cni-1"));
    keep(&pod, &file)?;
    process(&host, 10, UID, &pod, 1)?;
    let cgroup = host.dir.path().join("proc/10/cgroup");
    std::fs::write(&cgroup, format!("0::/crio-{CONTAINER}.scope\n"))?;
    let found = host.kernel.find_netns(&query("10.11.0.5")?)?;
    ensure!(found.values().map(Netns::id).collect::<Vec<_>>() == [pod.id()]);
    // It is not taken for another pod's when the sandbox is named by an event.
    ensure!(host.kernel.open_netns(&file, &UID.into())?.id() == pod.id());
    host.kernel.forget_netns(&UID.into());
    std::fs::write(&cgroup, format!("0::/crio-{}.scope\n", CONTAINER.replace('a', "b")))?;
    ensure!(host.kernel.find_netns(&query("10.11.0.5")?)?.is_empty(), "a container of another pod");
    Ok(())
}

fn the_hosts_rules_go_when_no_pod_is_left() -> anyhow::Result<()> {
    let host = host()?;
    let netns = Netns::current()?;
    host.kernel.apply_host()?;
    let pod = ProbeTarget { ip: "10.11.0.5".parse()?, uid: UID.into() };
    host.kernel.add_probe_target(&pod)?;
    ensure!(host.kernel.remove_host()? == 1 && !nft::dump(&netns)?.tables.is_empty(), "its probes need them");
    host.kernel.remove_probe_target(&pod)?;
    ensure!(host.kernel.remove_host()? == 0 && nft::dump(&netns)?.tables.is_empty());
    ensure!(host.kernel.remove_host()? == 0, "there is nothing more");
    Ok(())
}

fn pod_rules_are_applied_idempotently_and_removed() -> anyhow::Result<()> {
    let host = host()?;
    let pod = Netns::create()?;
    let capture = CaptureConfig {
        dns: true,
        ipv6: true,
        inbound: true,
        virtual_interfaces: Vec::new(),
        probe_ports: vec![8080],
    };
    host.kernel.apply_pod(&pod, &capture, Gate::Open)?;
    let once = nft::dump(&pod)?;
    ensure!(once.tables.len() == 4, "{once:?}");
    host.kernel.apply_pod(&pod, &capture, Gate::Open)?;
    ensure!(nft::dump(&pod)? == once, "applying twice changes nothing");
    host.kernel.apply_pod(&pod, &CaptureConfig { dns: false, ..capture }, Gate::Open)?;
    ensure!(nft::dump(&pod)? != once, "the rules of a disabled feature are removed");
    host.kernel.remove_pod(&pod)?;
    host.kernel.remove_pod(&pod)?;
    ensure!(nft::dump(&pod)?.tables.is_empty());
    ensure!(route::local_routes(&pod, false, 100)?.is_empty());
    Ok(())
}

fn a_probe_entry_is_removed_only_by_its_pod() -> anyhow::Result<()> {
    let kernel = host()?.kernel;
    let probe = |ip: &str, uid: &str| -> anyhow::Result<ProbeTarget> {
        Ok(ProbeTarget { ip: ip.parse::<IpAddr>()?, uid: uid.into() })
    };
    ensure!(kernel.add_probe_target(&probe("10.11.0.5", "a")?).is_err(), "the probe sets do not exist yet");
    kernel.apply_host()?;
    for (ip, uid) in [("10.11.0.5", "a"), ("fd00::5", "a"), ("10.11.0.5", "a")] {
        kernel.add_probe_target(&probe(ip, uid)?)?;
    }
    ensure!(kernel.probe_targets()?.len() == 2);
    // The address is another pod's now: the late removal of the first pod must keep the entry.
    kernel.add_probe_target(&probe("10.11.0.5", "b")?)?;
    kernel.remove_probe_target(&probe("10.11.0.5", "a")?)?;
    ensure!(kernel.probe_targets()?.contains(&probe("10.11.0.5", "b")?));
    // A restarted node role keeps the entries.
    kernel.apply_host()?;
    ensure!(kernel.probe_targets()?.len() == 2);
    kernel.remove_probe_target(&probe("10.11.0.5", "b")?)?;
    kernel.remove_probe_target(&probe("fd00::5", "a")?)?;
    kernel.remove_probe_target(&probe("fd00::5", "a")?)?;
    ensure!(kernel.probe_targets()?.is_empty());
    Ok(())
}
