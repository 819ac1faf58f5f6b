//! Detects the user that kubelet runs as, from the processes in `/proc`: the host's rules tell probes from other
//! traffic by the user of the sending socket.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cgroup::is_of_a_pod;

/// The user that kubelet runs as; `None` when no kubelet process is visible. A process of a pod is never taken for it,
/// whatever its name. When candidates have different users, none is believed but user 0, which owns the node anyway.
pub(crate) fn uid(proc_dir: &Path) -> Option<u32> {
    let found = candidates(proc_dir);
    let users: BTreeSet<u32> = found.iter().map(|(_, uid)| *uid).collect();
    if users.len() > 1 {
        tracing::error!(
            processes = ?found,
            "several processes with different users may be the kubelet; only probes from user 0 are let through until \
             KUBELET_UID names its user",
        );
        return Some(0);
    }
    users.first().copied()
}

/// The processes that may be the kubelet, each with its user.
fn candidates(proc_dir: &Path) -> Vec<(String, u32)> {
    let Ok(processes) = std::fs::read_dir(proc_dir) else { return Vec::new() };
    let candidate = |entry: std::fs::DirEntry| {
        let process = entry.path();
        let comm = std::fs::read_to_string(process.join("comm")).ok()?;
        let cmdline = || std::fs::read(process.join("cmdline")).unwrap_or_default();
        if !is_kubelet(comm.trim_end(), cmdline) {
            return None;
        }
        // A process without a readable cgroup has ended, or its place is not known: it is no evidence.
        let cgroup = std::fs::read_to_string(process.join("cgroup")).ok()?;
        if is_of_a_pod(&cgroup) {
            tracing::warn!(process = %process.display(), "a process of a pod has the kubelet's name, ignored");
            return None;
        }
        Some((entry.file_name().to_string_lossy().into_owned(), entry.metadata().ok()?.uid()))
    };
    processes.flatten().filter_map(candidate).collect()
}

/// `kubelet` itself, microk8s' `kubelite` when its arguments enable kubelet, and k3s, which runs everything in one
/// process.
fn is_kubelet(comm: &str, cmdline: impl FnOnce() -> Vec<u8>) -> bool {
    match comm {
        "kubelet" => true,
        "kubelite" => cmdline().windows(7).any(|part| part == b"kubelet"),
        "k3s" | "k3s-server" | "k3s-agent" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_is_known_under_the_names_of_distributions() {
        let rows = [
            ("kubelet", "", true),
            ("kubelite", "/snap/kubelite\0--kubelet-args-file=x", true),
            ("kubelite", "/snap/kubelite", false),
            ("k3s-server", "", true),
            ("kube-proxy", "kubelet", false),
        ];
        for (comm, cmdline, want) in rows {
            assert_eq!(is_kubelet(comm, || cmdline.as_bytes().to_vec()), want, "{comm}");
        }
    }

    const OWN: &str = "0::/system.slice/kubelet.service\n";

    fn process(proc_dir: &Path, pid: &str, comm: &str, cgroup: &str, owner: Option<u32>) {
        let folder = proc_dir.join(pid);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
        std::fs::write(folder.join("cgroup"), cgroup).unwrap();
        if let Some(owner) = owner {
            std::os::unix::fs::chown(&folder, Some(owner), None).unwrap();
        }
    }

    #[test]
    fn the_kubelet_user_is_the_owner_of_its_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(uid(dir.path()), None);
        process(dir.path(), "41", "kubelet", OWN, None);
        assert_eq!(uid(dir.path()), Some(std::fs::metadata(dir.path()).unwrap().uid()));
        assert_eq!(uid(&dir.path().join("gone")), None);
    }

    #[test]
    fn a_process_of_a_pod_is_never_the_kubelet() {
        let dir = tempfile::tempdir().unwrap();
        let pod = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        for (pid, cgroup) in [
            ("7", format!("0::/kubepods/besteffort/pod{pod}/{}", "a".repeat(64))),
            ("8", format!("0::/kubelet.slice/kubelet-kubepods.slice/crio-{}.scope", "b".repeat(64))),
        ] {
            process(dir.path(), pid, "kubelet", &cgroup, None);
        }
        assert_eq!(uid(dir.path()), None);
        process(dir.path(), "900", "kubelet", OWN, None);
        assert_eq!(candidates(dir.path()).len(), 1);
    }

    #[test]
    fn candidates_with_different_users_yield_root() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        process(dir.path(), "41", "kubelet", OWN, Some(7));
        assert_eq!(uid(dir.path()), Some(7));
        process(dir.path(), "42", "kubelet", OWN, Some(8));
        assert_eq!(uid(dir.path()), Some(0));
    }
}
