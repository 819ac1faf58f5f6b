use super::*;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
fn pod() -> PodRef {
    PodRef { uid: UID.into(), namespace: "sample".into(), name: "a".into(), service_account: "sa".into() }
}

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
        format!("12:pids:/kubepods/burstable/pod{UID}/{ID}\n11:memory:/kubepods/burstable/pod{UID}/{ID}\n"),
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
fn the_start_time_is_parsed_after_any_command_name() {
    let fields: Vec<_> = (3..=30).map(|field| field.to_string()).collect();
    for command in ["sh", "a b", "x) R 1 (y"] {
        assert_eq!(start_time(&format!("7 ({command}) {}", fields.join(" "))), Some(22), "{command}");
    }
    assert_eq!(start_time(""), None);
}

#[test]
fn no_namespace_is_found_without_processes_and_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1")).unwrap();
    std::fs::write(dir.path().join("1/cgroup"), format!("0::/kubepods/pod{UID}/{ID}")).unwrap();
    std::fs::write(dir.path().join("cni-1"), "no namespace").unwrap();
    let queries = [NetnsQuery { pod: pod(), ips: vec!["10.0.0.5".parse().unwrap()] }];
    let host = Netns::current().unwrap().id();
    assert!(find(dir.path(), dir.path(), host, &queries).is_empty());
    assert!(find(&dir.path().join("gone"), &dir.path().join("gone"), host, &queries).is_empty());
}

#[test]
fn a_namespace_file_with_the_pods_address_is_found() {
    // The namespace of this test, which has at least its loopback addresses, stands in for a pod's and then for the
    // host's.
    let here = Netns::current().unwrap();
    let (_, net) = isthmus_sys::route::addresses(&here).unwrap().into_iter().next().expect("loopback is up");
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/proc/thread-self/ns/net", dir.path().join("cni-1")).unwrap();
    let queries = [NetnsQuery { pod: pod(), ips: vec![net.addr()] }];
    let other = NetnsId { dev: 0, ino: 0 };
    // Files are searched even where processes cannot be.
    let found = find(&dir.path().join("gone"), dir.path(), other, &queries);
    assert_eq!(found.values().map(Netns::id).collect::<Vec<_>>(), [here.id()]);
    // As the host's own namespace it is never a pod's.
    assert!(find(&dir.path().join("gone"), dir.path(), here.id(), &queries).is_empty());
}
