//! The real istioctl reads our dump, in every format that it knows, as it reads the one that its own test data is made
//! of. `ISTHMUS_ISTIOCTL` names the program; without it these tests fail, because then nothing would be shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{dump, golden};

/// What `ztunnel-config` is asked, and the file of its own test data where that table is.
const TABLES: [(&[&str], Option<&str>); 9] = [
    (&["workload"], Some("workloadsummary.txt")),
    (&["workload", "--workload-namespace=default"], None),
    (&["workload", "--address=10.244.1.16"], None),
    (&["service"], None),
    (&["policy"], Some("policies.txt")),
    (&["certificate"], Some("secretsummary.txt")),
    (&["connections"], Some("connectionsummary.txt")),
    (&["connections", "--raw", "--direction=outbound"], None),
    (&["all", "--with-headers"], Some("allsummary_withheaders.txt")),
];

fn istioctl(args: &[&str], dump: &Path) -> String {
    let program = std::env::var_os("ISTHMUS_ISTIOCTL").expect("ISTHMUS_ISTIOCTL names istioctl's program");
    let output = Command::new(program).arg("ztunnel-config").args(args).arg("-f").arg(dump).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A dump as a file.
struct Dumped(tempfile::NamedTempFile);

impl Dumped {
    async fn ours() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), dump("").await.to_string()).unwrap();
        Self(file)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&istioctl(&[args, &["-o", "json"]].concat(), self.0.path())).unwrap()
    }
}

#[tokio::test]
async fn prints_its_own_tables_from_our_dump() {
    let (ours, theirs) = (Dumped::ours().await, fixture());
    for (args, file) in TABLES {
        let table = istioctl(args, ours.0.path());
        assert_eq!(table, istioctl(args, &theirs), "{args:?}");
        assert!(table.lines().count() > 1, "{args:?}: {table}");
        if let Some(file) = file {
            assert_eq!(table, golden(file), "{args:?}");
        }
    }
}

/// What it passes on as JSON is the same as of its own data, but for what that data is too old to have.
#[tokio::test]
async fn reads_the_same_objects() {
    let ours = Dumped::ours().await;
    for (kind, key) in [("workload", "uid"), ("policy", "name"), ("connections", "info")] {
        let theirs = istioctl(&[kind, "-o", "json"], &fixture());
        let theirs = serde_json::from_str(&theirs).unwrap();
        assert_eq!(objects(&ours.json(&[kind]), key), objects(&theirs, key), "{kind}");
    }
}

#[tokio::test]
async fn says_the_same_in_yaml() {
    let ours = Dumped::ours().await;
    for kind in ["workload", "service", "policy", "certificate", "connections"] {
        let yaml = istioctl(&[kind, "-o", "yaml"], ours.0.path());
        let yaml: Value = yaml_serde::from_str(&yaml).unwrap();
        assert_eq!(yaml, ours.json(&[kind]), "{kind}");
        assert!(yaml.as_array().is_some_and(|all| !all.is_empty()), "{kind}: {yaml}");
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/istioctl/dump.json")
}

/// Objects by what they are called.
fn objects(list: &Value, key: &str) -> BTreeMap<String, Value> {
    let named = |object: &Value| {
        let mut object = object.clone();
        for newer in ["capacity", "workloadType"] {
            object.as_object_mut().unwrap().remove(newer);
        }
        (object[key].to_string(), object)
    };
    list.as_array().unwrap().iter().map(named).collect()
}
