//! Finds the network namespace of a running pod, which no plugin event names: through the cgroup of its processes,
//! else among the container runtime's namespace files. A namespace counts only if one of its interfaces has an address
//! of the pod.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use isthmus_model::{PodRef, PodUid};
use isthmus_sys::netns::{Netns, NetnsId};

use crate::pod::Pod;

/// A pod whose network namespace is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsQuery {
    /// Which pod.
    pub pod: PodRef,
    /// Its addresses; a pod without one is never found.
    pub ips: Vec<IpAddr>,
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
        Self { pod: pod.pod.clone(), ips: pod.ips.clone() }
    }
}

/// Searches for all pods in one pass over the processes in `proc_dir` and, for those not found, one over the files of
/// `netns_dir`. The host's own namespace is never a pod's.
pub(crate) fn find(
    proc_dir: &Path,
    netns_dir: &Path,
    host: NetnsId,
    queries: &[NetnsQuery],
) -> HashMap<PodUid, Netns> {
    let mut found = by_processes(proc_dir, host, queries).unwrap_or_else(|error| {
        tracing::warn!(folder = %proc_dir.display(), %error,
            "cannot list the host's processes; pods are searched by namespace files only (HOST_PROC)");
        HashMap::new()
    });
    let rest: Vec<_> = queries.iter().filter(|query| !found.contains_key(&query.pod.uid)).collect();
    if !rest.is_empty() {
        found.extend(by_files(netns_dir, host, &rest));
    }
    found
}

fn by_processes(
    proc_dir: &Path,
    host: NetnsId,
    queries: &[NetnsQuery],
) -> io::Result<HashMap<PodUid, Netns>> {
    let by_uid: HashMap<&str, &NetnsQuery> =
        queries.iter().map(|query| (query.pod.uid.as_str(), query)).collect();
    let mut oldest: HashMap<PodUid, Candidate> = HashMap::new();
    for entry in std::fs::read_dir(proc_dir)? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        // Processes end during the scan: a file that cannot be read belongs to one that has.
        let Some(query) = std::fs::read_to_string(process.join("cgroup"))
            .ok()
            .and_then(|text| pod_of_cgroup(&text))
            .and_then(|uid| by_uid.get(uid.as_str()).copied())
        else {
            continue;
        };
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let Some(started) = start_time(&stat) else { continue };
        if oldest.get(&query.pod.uid).is_some_and(|candidate| candidate.started <= started) {
            continue;
        }
        let Ok(netns) = Netns::open(&process.join("ns/net")) else { continue };
        if netns.id() != host && owns_one_of(&netns, &query.ips) {
            oldest.insert(query.pod.uid.clone(), Candidate { netns, started });
        }
    }
    Ok(oldest.into_iter().map(|(uid, candidate)| (uid, candidate.netns)).collect())
}

/// Searches the files that container runtimes bind-mount their sandboxes' namespaces on. If two of them have an
/// address of one pod, one belongs to a stale sandbox; nothing tells which, so neither is used.
fn by_files(netns_dir: &Path, host: NetnsId, queries: &[&NetnsQuery]) -> HashMap<PodUid, Netns> {
    let mut found: HashMap<PodUid, Netns> = HashMap::new();
    let mut ambiguous = HashSet::new();
    let mut seen = HashSet::from([host]);
    let Ok(files) = std::fs::read_dir(netns_dir) else { return found };
    for file in files.flatten() {
        let Ok(netns) = Netns::open(&file.path()) else { continue };
        if !seen.insert(netns.id()) {
            continue;
        }
        for NetnsQuery { pod, .. } in queries.iter().filter(|query| owns_one_of(&netns, &query.ips)) {
            if let Some(other) = found.insert(pod.uid.clone(), netns.clone()) {
                tracing::warn!(%pod, uid = %pod.uid, folder = %netns_dir.display(), one = %other.id(),
                    other = %netns.id(), "pod not enrolled: two network namespaces have its address");
                ambiguous.insert(pod.uid.clone());
            }
        }
    }
    found.retain(|uid, _| !ambiguous.contains(uid));
    found
}

fn owns_one_of(netns: &Netns, ips: &[IpAddr]) -> bool {
    isthmus_sys::route::addresses(netns)
        .is_ok_and(|addresses| addresses.iter().any(|(_, net)| ips.contains(&net.addr())))
}

/// The UID of the pod that a process with this `/proc/<pid>/cgroup` belongs to. `None` when it belongs to no pod, or
/// when its lines (cgroup v1 has one per controller) name different pods or containers.
fn pod_of_cgroup(text: &str) -> Option<String> {
    let mut found: Option<(String, String)> = None;
    // `hierarchy:controllers:path`, and the path may contain colons.
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        let Some(pod) = pod_of_path(path) else { continue };
        match &found {
            Some(known) if *known != pod => return None,
            _ => found = Some(pod),
        }
    }
    found.map(|(uid, _)| uid)
}

/// The pod's UID and the container's id in a cgroup path, in the forms of the systemd and the plain driver:
/// `…/kubepods-besteffort-pod<uid>.slice/cri-containerd-<id>.scope` and `…/besteffort/pod<uid>/<id>`.
fn pod_of_path(path: &str) -> Option<(String, String)> {
    let mut segments = path.split('/').skip_while(|segment| uid_of_segment(segment).is_none());
    let uid = uid_of_segment(segments.next()?)?;
    let container = segments.next()?;
    let id = container.trim_end_matches(".scope");
    // docker-, crio-, cri-containerd- and containerd's own `prefix:cri-containerd:id`.
    let id = id.rsplit(['-', ':']).next()?;
    let plausible = id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    plausible.then(|| (uid, id.to_owned()))
}

/// The UID in a segment such as `pod<uid>`, `kubepods-burstable-pod<uid>.slice`; underscores become dashes.
fn uid_of_segment(segment: &str) -> Option<String> {
    let segment = segment.split(':').next().unwrap_or_default().trim_end_matches(".slice");
    let uid = segment.strip_prefix("pod").or_else(|| segment.rsplit_once("-pod").map(|(_, uid)| uid))?;
    let uid = uid.replace('_', "-");
    let hex = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    // A UUID, or the hash without dashes that static pods have instead.
    (hex == 32 && (dashes == 4 || dashes == 0) && hex + dashes == uid.len()).then_some(uid)
}

/// Field 22 of `/proc/<pid>/stat`. The second field is the command in parentheses, which may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests;
