//! Finds the network namespace of a running pod by evidence that no pod controls: the cgroup of its processes. A
//! namespace counts only if one of its interfaces has an address of the pod, and no process of another pod is in it. An
//! address alone is no evidence: any pod may put any address on its loopback interface.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use isthmus_model::{PodRef, PodUid};
use isthmus_sys::netns::{Netns, NetnsId};

use crate::cgroup::{container_of_cgroup, pod_of_cgroup};
use crate::pod::Pod;

/// A pod whose network namespace is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsQuery {
    /// Which pod.
    pub pod: PodRef,
    /// Its addresses; a pod without one is never found.
    pub ips: Vec<IpAddr>,
    /// The ids of its containers, for a runtime whose cgroups do not name the pod.
    pub containers: Vec<String>,
}

/// A process of a pod.
pub(crate) struct PodProcess {
    /// Which pod's, as its cgroup has it.
    pub(crate) owner: Owner,
    /// Its folder in `/proc`.
    pub(crate) folder: PathBuf,
    /// The network namespace that it is in.
    pub(crate) netns: NetnsId,
}

/// What a cgroup says about the pod of a process.
pub(crate) enum Owner {
    /// Its UID.
    Pod(String),
    /// Only the container (CRI-O).
    Container(String),
}

impl PodProcess {
    /// The UID of its pod, where that is known.
    pub(crate) fn pod(&self) -> Option<&str> {
        match &self.owner {
            Owner::Pod(uid) => Some(uid),
            Owner::Container(_) => None,
        }
    }
}

/// A namespace that may be a pod's: processes of a pod can enter another one (`nsenter`), so the oldest process
/// decides.
struct Candidate {
    netns: Netns,
    /// Start of the process that it was found by, in clock ticks after boot.
    started: u64,
}

impl NetnsQuery {
    /// The query for a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self { pod: pod.pod.clone(), ips: pod.ips.clone(), containers: pod.containers.clone() }
    }
}

/// Searches for all pods in one pass over the processes in `proc_dir`. The host's own namespace is never a pod's.
pub(crate) fn find(proc_dir: &Path, host: NetnsId, queries: &[NetnsQuery]) -> HashMap<PodUid, Netns> {
    let mut processes = processes(proc_dir).unwrap_or_else(|error| {
        tracing::warn!(folder = %proc_dir.display(), %error,
            "cannot list the host's processes; running pods are found by the record of their creation only (HOST_PROC)");
        Vec::new()
    });
    name_pods(&mut processes, queries);
    let by_uid: HashMap<&str, &NetnsQuery> =
        queries.iter().map(|query| (query.pod.uid.as_str(), query)).collect();
    let mut oldest: HashMap<PodUid, Candidate> = HashMap::new();
    for process in &processes {
        let Some(pod) = process.pod() else { continue };
        let Some(query) = by_uid.get(pod) else { continue };
        if process.netns == host || another_pod_in(process.netns, pod, &processes).is_some() {
            continue;
        }
        // Processes end during the scan: a file that cannot be read belongs to one that has.
        let stat = std::fs::read_to_string(process.folder.join("stat")).unwrap_or_default();
        let Some(started) = start_time(&stat) else { continue };
        if oldest.get(&query.pod.uid).is_some_and(|candidate| candidate.started <= started) {
            continue;
        }
        let Ok(netns) = Netns::open(&process.folder.join("ns/net")) else { continue };
        if netns.id() == process.netns && owns_one_of(&netns, &query.ips) {
            oldest.insert(query.pod.uid.clone(), Candidate { netns, started });
        }
    }
    oldest.into_iter().map(|(uid, candidate)| (uid, candidate.netns)).collect()
}

/// Gives processes whose cgroups name the container only their pod.
fn name_pods(processes: &mut [PodProcess], queries: &[NetnsQuery]) {
    let by_container: HashMap<&str, &str> = queries
        .iter()
        .flat_map(|query| query.containers.iter().map(|id| (id.as_str(), query.pod.uid.as_str())))
        .collect();
    for process in processes {
        let Owner::Container(id) = &process.owner else { continue };
        if let Some(uid) = by_container.get(id.as_str()) {
            process.owner = Owner::Pod((*uid).to_owned());
        }
    }
}

/// The processes of all pods.
///
/// # Errors
/// When `proc_dir` cannot be listed.
pub(crate) fn processes(proc_dir: &Path) -> io::Result<Vec<PodProcess>> {
    let process = |entry: std::fs::DirEntry| {
        entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit).then_some(())?;
        let folder = entry.path();
        let cgroup = std::fs::read_to_string(folder.join("cgroup")).ok()?;
        let owner = pod_of_cgroup(&cgroup).map(Owner::Pod);
        let owner = owner.or_else(|| container_of_cgroup(&cgroup).map(Owner::Container))?;
        let file = std::fs::metadata(folder.join("ns/net")).ok()?;
        Some(PodProcess { owner, folder, netns: NetnsId { dev: file.dev(), ino: file.ino() } })
    };
    Ok(std::fs::read_dir(proc_dir)?.flatten().filter_map(process).collect())
}

/// Another pod that has a process in a namespace, of those whose processes name it.
pub(crate) fn another_pod_in<'a>(netns: NetnsId, pod: &str, processes: &'a [PodProcess]) -> Option<&'a str> {
    let others: BTreeSet<&str> = processes
        .iter()
        .filter(|process| process.netns == netns)
        .filter_map(PodProcess::pod)
        .filter(|other| *other != pod)
        .collect();
    others.first().copied()
}

pub(crate) fn owns_one_of(netns: &Netns, ips: &[IpAddr]) -> bool {
    isthmus_sys::route::addresses(netns)
        .is_ok_and(|addresses| addresses.iter().any(|(_, net)| ips.contains(&net.addr())))
}

/// Field 22 of `/proc/<pid>/stat`. The second field is the command in parentheses, which may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests;
