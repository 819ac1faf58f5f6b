//! Rules of choice, insertion and removal as tables: the cases of istio-cni's own tests, and those that it has none for.

use super::*;

const BRIDGE: &str = r#"{"cniVersion":"0.4.0","name":"mynet","type":"bridge","ipam":{"type":"host-local"}}"#;
const LIST: &str =
    r#"{"cniVersion":"1.0.0","name":"k8s","plugins":[{"type":"calico","mtu":1500},{"type":"portmap"}]}"#;
const WITH_OURS: &str = r#"{"cniVersion":"1.0.0","name":"k8s","plugins":[{"type":"calico","mtu":1500},
    {"type":"istio-cni","name":"istio-cni","old":true},{"type":"portmap"}]}"#;
const OURS: &str = r#"{"cniVersion":"0.3.1","name":"istio-cni","type":"istio-cni"}"#;
const ONLY_OURS: &str = r#"{"name":"x","plugins":[{"type":"istio-cni"}]}"#;
/// Files of a folder: name and text.
type Found = &'static [(&'static str, &'static str)];

/// The network that is used, or a part of the reason for none.
type Used = Result<&'static str, &'static str>;

const OWNED: &str = "02-istio-cni.conflist";

fn files(of: &[(&str, &str)]) -> Files {
    of.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn layout(kind: Kind, name: Option<&str>) -> Layout {
    Layout { name: name.map(str::to_owned), kind, owned: OWNED.to_owned() }
}

fn entry() -> Entry {
    Entry { log_level: "info".to_owned(), ambient_enabled: true, ..Entry::default() }
}

/// The folder after a plan.
fn done(mut files: Files, plan: &Plan) -> Files {
    for Write { name, text, .. } in &plan.writes {
        files.insert(name.clone(), text.clone().into_bytes());
    }
    plan.removes.iter().for_each(|name| drop(files.remove(name)));
    files
}

/// Plans and carries out; what comes out needs nothing more.
fn settled(found: &[(&str, &str)], layout: &Layout) -> Result<(Plan, Files), NoNetwork> {
    let plan = plan(&files(found), layout, &entry())?;
    let after = done(files(found), &plan);
    assert!(super::plan(&after, layout, &entry())?.is_done(), "{found:?}");
    Ok((plan, after))
}

fn types(text: &[u8]) -> Vec<String> {
    let value: Value = serde_json::from_slice(text).unwrap();
    let plugins = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value]);
    plugins.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_first_valid_network_is_chosen() {
    let cases: [(&str, Found, Option<&str>); 12] = [
        ("empty folder", &[], None),
        ("another ending", &[("bridge.file", BRIDGE)], None),
        ("empty file", &[("empty.conf", "")], None),
        ("not an object", &[("x.conf", "[]")], None),
        ("a list without plugins", &[("x.conflist", r#"{"name":"x","plugins":[]}"#)], None),
        ("no list in a list's file", &[("x.conflist", BRIDGE)], None),
        ("plugins is no list", &[("x.conf", r#"{"plugins":{"type":"bridge"}}"#)], None),
        ("one", &[("regular.conf", BRIDGE)], Some("regular.conflist")),
        (
            "the first of two",
            &[("regular2.conf", BRIDGE), ("regular.conf", BRIDGE)],
            Some("regular.conflist"),
        ),
        ("invalid ones are passed over", &[("00.conflist", "{"), ("10.conflist", LIST)], Some("10.conflist")),
        ("our plugin alone is no network", &[("00.conf", OURS), ("01.conflist", ONLY_OURS)], None),
        (
            "a list of our own is no network",
            &[(OWNED, WITH_OURS), ("10.conflist", LIST)],
            Some("10.conflist"),
        ),
    ];
    for (what, found, want) in cases {
        let chosen = settled(found, &layout(Kind::Chained, None));
        match want {
            Some(name) => assert_eq!(chosen.unwrap().0.network.as_deref(), Some(name), "{what}"),
            None => assert!(matches!(chosen, Err(NoNetwork::None(_))), "{what}: {chosen:?}"),
        }
    }
}

#[test]
fn what_is_passed_over_is_named() {
    let found = [("00.conflist", "{"), ("10-calico.conflist", LIST), ("87-podman.conflist", LIST)];
    let (plan, after) = settled(&found, &layout(Kind::Chained, None)).unwrap();
    assert_eq!(
        (plan.network.as_deref(), plan.ignored.as_slice()),
        (Some("10-calico.conflist"), &["87-podman.conflist".to_owned()][..])
    );
    assert_eq!(plan.invalid[0].0, "00.conflist");
    assert_eq!(after["87-podman.conflist"], LIST.as_bytes());
    let error = plan_error(&[("00.conflist", "{")], &layout(Kind::Chained, None));
    assert!(
        error.contains("no network configuration yet") && error.contains("00.conflist is invalid"),
        "{error}"
    );
}

fn plan_error(found: &[(&str, &str)], layout: &Layout) -> String {
    plan(&files(found), layout, &entry()).unwrap_err().to_string()
}

#[test]
fn a_configured_file_is_found_under_either_ending() {
    let both: Found = &[("bridge.conf", BRIDGE), ("list.conflist", LIST)];
    let cases: [(&str, Option<&str>, Found, Used); 10] = [
        ("not configured", None, both, Ok("bridge.conflist")),
        ("not configured, comes later", None, &[], Err("no network configuration yet")),
        ("configured", Some("list.conflist"), both, Ok("list.conflist")),
        ("as .conf, is .conflist", Some("list.conf"), both, Ok("list.conflist")),
        ("as .conflist, is .conf", Some("bridge.conflist"), both, Ok("bridge.conflist")),
        (
            "comes later",
            Some("bridge.conf"),
            &[],
            Err("bridge.conf, as CNI_CONF_NAME names it, does not exist yet"),
        ),
        ("never comes", Some("never.conf"), both, Err("never.conf")),
        ("of another ending", Some("a.file"), &[("a.file", LIST), ("list.conflist", LIST)], Ok("a.file")),
        (
            "invalid",
            Some("x.conflist"),
            &[("x.conflist", "{"), ("y.conflist", LIST)],
            Err("x.conflist, as CNI_CONF_NAME names it, is invalid: not JSON"),
        ),
        ("both endings", Some("a.conf"), &[("a.conf", BRIDGE), ("a.conflist", LIST)], Ok("a.conflist")),
    ];
    for (what, name, found, want) in cases {
        match (settled(found, &layout(Kind::Chained, name)), want) {
            (Ok((plan, after)), Ok(want)) => {
                assert_eq!(plan.network.as_deref(), Some(want), "{what}");
                assert_eq!(types(&after[want]).last().unwrap(), PLUGIN, "{what}");
            }
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{what}: {error}"),
            (got, want) => panic!("{what}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn our_entry_is_the_last_one_of_the_list_and_the_only_one() {
    let cases = [
        ("a plugin", "bridge.conf", BRIDGE, "bridge.conflist", &["bridge", "istio-cni"][..]),
        ("a list", "list.conflist", LIST, "list.conflist", &["calico", "portmap", "istio-cni"]),
        (
            "a list with an entry of ours",
            "list.conflist",
            WITH_OURS,
            "list.conflist",
            &["calico", "portmap", "istio-cni"],
        ),
        ("a list in a .conf file", "list.conf", LIST, "list.conf", &["calico", "portmap", "istio-cni"]),
    ];
    for (what, name, text, target, want) in cases {
        let (plan, after) = settled(&[(name, text)], &layout(Kind::Chained, None)).unwrap();
        assert_eq!(after.keys().collect::<Vec<_>>(), [target], "{what}");
        assert_eq!(types(&after[target]), want, "{what}");
        assert_eq!(plan.writes[0].mode_of.as_deref(), Some(name), "{what}");
        let value: Value = serde_json::from_slice(&after[target]).unwrap();
        let plugins = value["plugins"].as_array().unwrap();
        assert!(plugins.iter().all(|one| one.get("cniVersion").is_none()), "{what}: {value}");
        assert_eq!(plugins.last().unwrap().get("old"), None, "{what}");
    }
}

/// Address management keeps its leases under the network's name.
#[test]
fn a_plugin_keeps_the_name_and_version_of_its_network() {
    let (_, after) = settled(&[("a.conf", BRIDGE)], &layout(Kind::Chained, None)).unwrap();
    let list: Value = serde_json::from_slice(&after["a.conflist"]).unwrap();
    assert_eq!((&list["name"], &list["cniVersion"]), (&json!("mynet"), &json!("0.4.0")));
    assert_eq!(
        list["plugins"][0],
        json!({"name": "mynet", "type": "bridge", "ipam": {"type": "host-local"}})
    );
    let (_, after) = settled(&[("a.conf", r#"{"type":"bridge"}"#)], &layout(Kind::Chained, None)).unwrap();
    let list: Value = serde_json::from_slice(&after["a.conflist"]).unwrap();
    assert_eq!((&list["name"], &list["cniVersion"]), (&json!("k8s-pod-network"), &json!("0.3.1")));
}

#[test]
fn a_stand_alone_configuration_is_a_file_of_its_own() {
    for (name, want) in [(None, "YYY-istio-cni.conf"), (Some("specific-name.conf"), "specific-name.conf")] {
        let (plan, after) = settled(&[("10.conflist", LIST)], &layout(Kind::Standalone, name)).unwrap();
        assert_eq!(plan.network, None);
        assert_eq!(after["10.conflist"], LIST.as_bytes());
        let value: Value = serde_json::from_slice(&after[want]).unwrap();
        assert_eq!(
            (&value["type"], &value["name"], &value["cniVersion"]),
            (&json!(PLUGIN), &json!(PLUGIN), &json!("0.3.1"))
        );
    }
}

#[test]
fn a_list_of_our_own_is_a_copy_of_the_clusters_that_sorts_first() {
    let owned = layout(Kind::Owned, None);
    let (_, after) = settled(&[("05-cilium.conflist", LIST)], &owned).unwrap();
    assert_eq!(types(&after[OWNED]), ["calico", "portmap", "istio-cni"]);
    assert_eq!(after["05-cilium.conflist"], LIST.as_bytes());
    // A plugin that the cluster's list has got since is missing in ours, and an entry of an earlier setting is in theirs.
    let (_, after) = settled(&[(OWNED, ONLY_OURS), ("05-cilium.conflist", WITH_OURS)], &owned).unwrap();
    assert_eq!(types(&after[OWNED]), ["calico", "portmap", "istio-cni"]);
    assert_eq!(types(&after["05-cilium.conflist"]), ["calico", "portmap"]);
    let error = plan_error(&[("00-first.conflist", LIST)], &owned);
    assert!(
        error.contains("does not sort before 00-first.conflist") && error.contains("ISTIO_OWNED"),
        "{error}"
    );
    assert!(matches!(plan(&files(&[(OWNED, WITH_OURS)]), &owned, &entry()), Err(NoNetwork::None(_))));
}

#[test]
fn what_an_earlier_setting_has_left_is_removed() {
    let found = [(OWNED, WITH_OURS), ("10.conflist", LIST), ("20.conflist", WITH_OURS)];
    let (_, after) = settled(&found, &layout(Kind::Chained, None)).unwrap();
    assert_eq!(after.keys().collect::<Vec<_>>(), ["10.conflist", "20.conflist"]);
    assert_eq!(types(&after["10.conflist"]), ["calico", "portmap", "istio-cni"]);
    assert_eq!(types(&after["20.conflist"]), ["calico", "portmap"], "a network that is not used");
    // A file of that name that is not ours stays.
    let (_, after) = settled(&[(OWNED, LIST), ("10.conflist", LIST)], &layout(Kind::Chained, None)).unwrap();
    assert_eq!(after[OWNED], LIST.as_bytes());
}

#[test]
fn a_removal_leaves_the_network_as_it_was() {
    let cases: [(&str, Layout, Found); 4] = [
        ("a list", layout(Kind::Chained, None), &[("10.conflist", LIST), ("x", "y")]),
        (
            "a configured list",
            layout(Kind::Chained, Some("20.conflist")),
            &[("10.conflist", LIST), ("20.conflist", LIST)],
        ),
        ("stand-alone", layout(Kind::Standalone, None), &[("10.conflist", LIST)]),
        ("owned", layout(Kind::Owned, None), &[("10.conflist", LIST)]),
    ];
    for (what, layout, found) in cases {
        let (_, installed) = settled(found, &layout).unwrap();
        let plan = removal(&installed, &layout);
        let after = done(installed, &plan);
        let parsed = |files: &Files| -> BTreeMap<String, Option<Value>> {
            files.iter().map(|(name, text)| (name.clone(), serde_json::from_slice(text).ok())).collect()
        };
        assert_eq!(parsed(&after), parsed(&files(found)), "{what}");
        assert!(removal(&after, &layout).is_done(), "{what}");
    }
    // A network that was of one plugin stays a list.
    let layout = layout(Kind::Chained, None);
    let (_, installed) = settled(&[("a.conf", BRIDGE)], &layout).unwrap();
    let after = done(installed.clone(), &removal(&installed, &layout));
    assert_eq!(types(&after["a.conflist"]), ["bridge"]);
    // Others' files are not read as ours, whatever is in them.
    assert!(removal(&files(&[("a.conf", "{"), ("b.conflist", LIST)]), &layout).is_done());
}

#[test]
fn the_entry_has_istio_cnis_keys() {
    let template =
        serde_json::from_str(r#"{"cniVersion":"0.3.1","type":"other","kubernetes":{"a":1}}"#).unwrap();
    let entry = Entry {
        template,
        log_level: "debug".to_owned(),
        run_dir: "/var/run/istio-cni".to_owned(),
        ambient_enabled: true,
        selectors: Vec::new(),
        exclude_namespaces: vec!["kube-system".to_owned()],
        pod_namespace: "istio-system".to_owned(),
        native_nftables: false,
        retry: true,
    };
    let want = json!({
        "kubernetes": {"a": 1},
        "name": "istio-cni", "type": "istio-cni", "plugin_log_level": "debug",
        "cni_agent_run_dir": "/var/run/istio-cni", "ambient_enabled": true, "enablement_selectors": [],
        "exclude_namespaces": ["kube-system"], "pod_namespace": "istio-system", "native_nftables": false,
        "enable_ambient_detection_retry": true,
    });
    assert_eq!(Value::Object(entry.to_json()), want);
}
