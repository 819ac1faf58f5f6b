//! Detects the user that kubelet runs as, from the processes in `/proc`: the host's rules tell probes from other
//! traffic by the user of the sending socket.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The user that kubelet runs as; `None` when no kubelet process is visible.
pub(crate) fn uid(proc_dir: &Path) -> Option<u32> {
    let processes = std::fs::read_dir(proc_dir).ok()?;
    processes.flatten().find_map(|entry| {
        let process = entry.path();
        let comm = std::fs::read_to_string(process.join("comm")).ok()?;
        let cmdline = || std::fs::read(process.join("cmdline")).unwrap_or_default();
        if is_kubelet(comm.trim_end(), cmdline) { Some(entry.metadata().ok()?.uid()) } else { None }
    })
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

    #[test]
    fn the_kubelet_user_is_the_owner_of_its_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(uid(dir.path()), None);
        std::fs::create_dir(dir.path().join("41")).unwrap();
        std::fs::write(dir.path().join("41/comm"), "kubelet\n").unwrap();
        assert_eq!(uid(dir.path()), Some(std::fs::metadata(dir.path()).unwrap().uid()));
        assert_eq!(uid(&dir.path().join("gone")), None);
    }
}
