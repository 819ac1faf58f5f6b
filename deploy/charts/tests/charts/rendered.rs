//! What helm makes of the charts.

use crate::CHARTS;
use crate::helm::{CASES, case, helm, template};

#[test]
fn charts_pass_lint() {
    for chart in CHARTS {
        let folder = crate::folder(chart);
        let mut args = vec!["lint", "--strict", folder.to_str().unwrap(), "--kube-version", "v1.33.0"];
        if chart == "gateway" {
            args.extend(["--set", "networkGateway=west"]);
        }
        helm(&args).unwrap_or_else(|error| panic!("{chart}: {error}"));
    }
}

#[test]
fn rendered_objects_equal_the_golden_files() {
    for (chart, name, release) in CASES {
        let path = format!("{}/tests/charts/golden/{chart}-{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let rendered = case(chart, name, release);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &rendered).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let differs = golden.lines().zip(rendered.lines()).position(|(old, new)| old != new);
        let line = differs.unwrap_or_else(|| golden.lines().count().min(rendered.lines().count()));
        let at = |text: &str| text.lines().nth(line).unwrap_or("nothing").to_owned();
        assert!(
            golden == rendered,
            "{chart} {name}, line {}: {} is now {}",
            line + 1,
            at(&golden),
            at(&rendered)
        );
    }
}

#[test]
fn values_that_cannot_work_are_refused_with_a_sentence() {
    for (chart, set, sentence) in [
        ("agent", "logLevels=debug", "additional properties 'logLevels' not allowed"),
        ("agent", "platform=eks", "value must be one of '', 'openshift'"),
        ("agent", "terminationGracePeriodSeconds=soon", "got string, want integer"),
        ("node", "repair.enabled=true", "which Isthmus does not serve"),
        ("node", "istioOwnedCNIConfig=true,chained=false", "istioOwnedCNIConfig needs chained=true"),
        ("node", "cniBinDir=opt/cni", "does not match pattern"),
        ("gateway", "replicaCount=1", "networkGateway is not set"),
        ("gateway", "networkGateway=w,gatewayAPI.exposeIstiod=true", "need gatewayAPI.createGateway=true"),
        ("gateway", "networkGateway=w,service.type=Ingress", "value must be one of 'LoadBalancer'"),
        ("gateway", "networkGateway=w,kind=DaemonSet", "value must be 'Deployment'"),
    ] {
        let error = template(chart, "x", &["--set", set]).expect_err(set);
        assert!(error.contains(sentence), "{chart} {set}: {error}");
    }
}

/// `global` of a values file that is shared with istio's charts.
#[test]
fn values_below_global_count_where_the_chart_has_none() {
    let global = "global.hub=r.example,global.tag=7,global.network=n1,global.multiCluster.clusterName=c1,\
                  global.imagePullPolicy=Never,global.caAddress=ca.example:1,global.proxy.image=ignored";
    let agent = template("agent", "x", &["--set", global]).unwrap();
    for line in [
        "image: \"r.example/isthmus:7\"",
        "imagePullPolicy: Never",
        "{name: NETWORK, value: \"n1\"}",
        "{name: ISTIO_META_CLUSTER_ID, value: \"c1\"}",
        "{name: CA_ADDRESS, value: \"ca.example:1\"}",
    ] {
        assert!(agent.contains(line), "{line}:\n{agent}");
    }
    let own =
        template("agent", "x", &["--set", &format!("{global},hub=own,network=n2,image=a/b:c")]).unwrap();
    assert!(own.contains("image: \"a/b:c\"") && own.contains("{name: NETWORK, value: \"n2\"}"), "{own}");
    for chart in ["node", "gateway"] {
        let set = format!("{global}{}", if chart == "gateway" { ",networkGateway=w" } else { "" });
        let text = template(chart, "x", &["--set", &set]).unwrap();
        assert!(text.contains("image: \"r.example/isthmus:7\""), "{chart}:\n{text}");
    }
}

/// A variable of the operator's replaces the chart's, also when it is empty or false.
#[test]
fn no_variable_is_there_twice() {
    for (chart, set, line) in [
        ("agent", "env.RUST_LOG=,env.NODE_NAME=n", "RUST_LOG, value: \"\""),
        ("node", "env.AMBIENT_IPV6=false", "AMBIENT_IPV6\n              value: \"false\""),
        ("gateway", "networkGateway=w,env.NETWORK=x", "NETWORK, value: \"x\""),
    ] {
        let text = template(chart, "x", &["--set", set]).unwrap();
        assert!(text.contains(line), "{chart}:\n{text}");
        let mut names: Vec<_> = text
            .lines()
            .filter_map(|line| {
                line.trim_start()
                    .strip_prefix("- name: ")
                    .or_else(|| line.trim_start().strip_prefix("- {name: "))
            })
            .map(|rest| rest.split(',').next().unwrap_or_default())
            .filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()))
            .collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{chart}: {names:?}");
    }
}
