//! Runs helm. Without the program every test here fails, because it would prove nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that templates are told: a helm that was built from its module has none of its own.
const KUBERNETES: &str = "v1.33.0";

/// A program that an environment variable names.
pub(crate) fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{variable} does not name a program"));
    assert!(path.is_file(), "{variable}: {} is not a file", path.display());
    path
}

/// Output of helm, or what it said on standard error.
pub(crate) fn helm(args: &[&str]) -> Result<String, String> {
    let home = tempfile::tempdir().expect("a folder");
    let output =
        Command::new(program("HELM")).args(args).env("HOME", home.path()).output().expect("helm starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The objects of a chart.
pub(crate) fn template(chart: &str, release: &str, more: &[&str]) -> Result<String, String> {
    let folder = crate::folder(chart);
    let mut args =
        vec!["template", release, folder.to_str().expect("a path in UTF-8"), "--namespace", "istio-system"];
    args.extend(["--kube-version", KUBERNETES]);
    args.extend(more);
    helm(&args)
}

/// A set of values that a chart is rendered with: chart, case, release.
pub(crate) const CASES: [(&str, &str, &str); 11] = [
    ("agent", "default", "ztunnel"),
    ("agent", "all", "ztunnel"),
    ("agent", "gke", "ztunnel"),
    ("agent", "openshift", "ztunnel"),
    ("node", "default", "istio-cni"),
    ("node", "all", "istio-cni"),
    ("node", "gke", "istio-cni"),
    ("node", "openshift", "istio-cni"),
    ("gateway", "default", "eastwest"),
    ("gateway", "all", "eastwest"),
    ("gateway", "openshift", "eastwest"),
];

/// The objects of a case.
pub(crate) fn case(chart: &str, case: &str, release: &str) -> String {
    let values = format!("{}/tests/charts/values/{chart}-{case}.yaml", env!("CARGO_MANIFEST_DIR"));
    assert!(Path::new(&values).is_file(), "{values}");
    template(chart, release, &["--values", &values]).unwrap_or_else(|error| panic!("{chart} {case}: {error}"))
}
