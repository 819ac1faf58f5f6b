//! Which pod a process belongs to, by the paths in its `/proc/<pid>/cgroup`. A process cannot leave the cgroup that the
//! kubelet and the container runtime gave it, so this is evidence.

/// Whether a process is one of a pod's, also where the path does not name the pod (CRI-O).
pub(crate) fn is_of_a_pod(text: &str) -> bool {
    let segments =
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| path.split('/'));
    segments.into_iter().any(|segment| segment.contains("kubepods") || uid_of_segment(segment).is_some())
}

/// The UID of the pod that a process with this `/proc/<pid>/cgroup` belongs to. `None` when it belongs to no pod, or
/// when its lines (cgroup v1 has one per controller) name different pods or containers.
pub(crate) fn pod_of_cgroup(text: &str) -> Option<String> {
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

/// The container that a process with this `/proc/<pid>/cgroup` belongs to, where CRI-O does not name the pod:
/// `…/crio-<id>.scope`. Which pod that is, the API server says. `None` when its lines name different containers.
pub(crate) fn container_of_cgroup(text: &str) -> Option<String> {
    let mut found: Option<&str> = None;
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        // The monitor of a container (`crio-conmon-…`) is a process of the host.
        let mut ids =
            path.split('/').filter_map(|segment| segment.strip_prefix("crio-")?.strip_suffix(".scope"));
        let Some(id) = ids.rfind(|id| is_container_id(id)) else { continue };
        if found.is_some_and(|known| known != id) {
            return None;
        }
        found = Some(id);
    }
    found.map(str::to_owned)
}

fn is_container_id(id: &str) -> bool {
    id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    is_container_id(id).then(|| (uid, id.to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    const ID: &str = "6d4b1c9e2f7a8053b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4";

    #[test]
    fn cgroup_paths_of_every_runtime_yield_the_pod_uid() {
        let under = UID.replace('-', "_");
        let lines = [
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope"),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/docker-{ID}.scope"
            ),
            format!(
                "12:pids:/kubepods/burstable/pod{UID}/{ID}\n11:memory:/kubepods/burstable/pod{UID}/{ID}\n"
            ),
            format!(
                "0::/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{ID}/{ID}"
            ),
            format!("0::/../../kubepods/besteffort/pod{UID}/{ID}/nested"),
        ];
        for line in lines {
            assert_eq!(pod_of_cgroup(&line).as_deref(), Some(UID), "{line}");
        }
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_of_cgroup(&format!("0::/kubepods/pod{hash}/{ID}")).as_deref(), Some(hash));
    }

    #[test]
    fn a_cgroup_without_exactly_one_pod_yields_nothing() {
        let other = UID.replace('0', "1");
        let lines = [
            String::new(),
            "0::/init.scope".to_owned(),
            "0::/user.slice/user-0.slice/session-1.scope".to_owned(),
            format!("0::/kubepods/pod{UID}"),
            format!("0::/kubepods/podsandbox/{ID}"),
            format!("0::/kubepods/pod{UID}/not-an-id"),
            format!("2:a:/kubepods/pod{UID}/{ID}\n1:b:/kubepods/pod{other}/{ID}"),
            format!("2:a:/kubepods/pod{UID}/{ID}\n1:b:/kubepods/pod{UID}/{}", ID.replace('a', "b")),
        ];
        for line in lines {
            assert_eq!(pod_of_cgroup(&line), None, "{line}");
        }
    }

    #[test]
    fn containers_of_crio_are_found_where_no_pod_is_named() {
        let other = ID.replace('a', "b");
        let rows = [
            (format!("0::/crio-{ID}.scope"), Some(ID)),
            (format!("0::/../crio-{ID}.scope/nested"), Some(ID)),
            (format!("0::/kubepods.slice/kubepods-besteffort.slice/crio-{ID}.scope"), Some(ID)),
            (format!("2:a:/x/crio-{ID}.scope\n1:b:/y/crio-{ID}.scope\n0::/init.scope"), Some(ID)),
            (format!("2:a:/crio-{ID}.scope\n1:b:/crio-{other}.scope"), None),
            (format!("0::/crio-conmon-{ID}.scope"), None),
            ("0::/crio-short.scope".to_owned(), None),
            (format!("0::/system.slice/docker-{ID}.scope"), None),
        ];
        for (text, want) in rows {
            assert_eq!(container_of_cgroup(&text).as_deref(), want, "{text}");
            assert_eq!(pod_of_cgroup(&text), None, "{text}");
        }
    }

    #[test]
    fn a_process_under_the_pods_slice_is_a_pods() {
        let daemons = ["0::/system.slice/kubelet.service", "0::/init.scope", "0::/podman/x", "", "0::/k3s"];
        assert!(!daemons.iter().any(|text| is_of_a_pod(text)));
        assert!(is_of_a_pod(&format!("0::/kubepods.slice/crio-{ID}.scope")));
        assert!(is_of_a_pod(&format!("5:cpu:/custom/pod{UID}/{ID}")));
    }
}
