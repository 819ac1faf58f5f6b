//! The scenarios, one function each.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Scenario;
use super::steps::Steps;

/// Probes come every five seconds.
const PROBES: Duration = Duration::from_secs(30);

/// Every scenario.
pub(crate) const ALL: [Scenario; 5] = [
    Scenario {
        name: "failover",
        about: "while the local helloworld is there it answers; when it is gone the remote one does, and back",
        play: failover,
    },
    Scenario {
        name: "two-cluster-policy",
        about: "an AuthorizationPolicy names a client of each cluster; everybody else is refused",
        play: two_cluster_policy,
    },
    Scenario {
        name: "strict",
        about: "PeerAuthentication STRICT refuses clients outside of the mesh, and probes still work",
        play: strict,
    },
    Scenario {
        name: "trust-domain-alias",
        about: "a policy that names an old trust domain holds while that is an alias of the mesh's",
        play: trust_domain_alias,
    },
    Scenario {
        name: "plaintext-gateway",
        about: "240.240.0.10 and names of ServiceEntries lead to three pods through a plain TCP listener",
        play: plaintext_gateway,
    },
];

fn failover(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.apply(&steps.own(""), "both")?;
    steps.answered_by("close ones first", "east/sleep", &["v1"])?;
    steps.answered_by("close ones first", "west/sleep", &["v2"])?;
    let local = steps.worlds("east/helloworld-v1.yaml");
    steps.delete(&local, "east")?;
    steps.answered_by("east's own is gone", "east/sleep", &["v2"])?;
    steps.answered_by("east's own is gone", "west/sleep", &["v2"])?;
    steps.apply(&local, "east")?;
    steps.answered_by("it is back", "east/sleep", &["v1"])?;
    steps.answered_by("it is back", "west/sleep", &["v2"])
}

fn two_cluster_policy(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.apply(&steps.own(""), "both")?;
    let policy = steps.own("policy/callers.yaml");
    for pod in ["east/sleep", "west/sleep"] {
        steps.answered_by("without a policy", pod, &["v1", "v2"])?;
    }
    steps.apply(&policy, "both")?;
    for pod in ["east/caller-east", "west/caller-west"] {
        steps.answered_by("named in the policy", pod, &["v1", "v2"])?;
    }
    for pod in ["east/sleep", "west/sleep", "east/client", "west/client"] {
        steps.refused("not named in it", pod)?;
    }
    steps.delete(&policy, "both")?;
    for pod in ["east/sleep", "west/sleep"] {
        steps.answered_by("the policy is gone", pod, &["v1", "v2"])?;
    }
    Ok(())
}

fn strict(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    let policy = steps.own("strict.yaml");
    let outside = [("east/client", "v1"), ("west/client", "v2")];
    for (pod, version) in outside {
        steps.answered_by("without a policy", pod, &[version])?;
    }
    steps.apply(&policy, "both")?;
    for (pod, _) in outside {
        steps.refused("outside of the mesh", pod)?;
    }
    for pod in ["east/sleep", "west/sleep"] {
        steps.answered_by("in the mesh", pod, &["v1", "v2"])?;
    }
    for pod in ["east/helloworld-v1", "west/helloworld-v2"] {
        let server = steps.pod(pod)?;
        let probes = |steps: &Steps<'_>| steps.logged(&server, "GET /health");
        let before = probes(steps);
        let probed = steps.until(PROBES, |steps| probes(steps) >= before + 2);
        let ready = steps.pod(pod)?.ready;
        let detail = format!("{} probes since, ready: {ready}", probes(steps) - before);
        steps.check(format!("the kubelet's probes of {pod} are let through"), probed && ready, detail);
    }
    steps.delete(&policy, "both")?;
    for (pod, version) in outside {
        steps.answered_by("the policy is gone", pod, &[version])?;
    }
    Ok(())
}

fn trust_domain_alias(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    let (policy, config) = (steps.own("policy.yaml"), steps.own("mesh-config.yaml"));
    let pods = ["east/sleep", "west/sleep"];
    steps.apply(&policy, "both")?;
    for pod in pods {
        steps.refused("the name means nobody", pod)?;
    }
    steps.apply(&config, "both")?;
    for pod in pods {
        steps.answered_by("the name is an alias", pod, &["v1", "v2"])?;
    }
    steps.refused("no account of that name", "east/client")?;
    steps.delete(&config, "both")?;
    for pod in pods {
        steps.refused("it is none any more", pod)?;
    }
    Ok(())
}

fn plaintext_gateway(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.apply(&steps.own(""), "both")?;
    for (what, host) in [
        ("the address of the ServiceEntry", "240.240.0.10"),
        ("its name", "hello.demo.svc.cluster.local"),
        ("a name whose address was allocated", "hello.cluster-a.example"),
    ] {
        let answers = steps.ask("west/test-remote", &format!("http://{host}:8080/hello"), 40)?;
        let instances: BTreeSet<&str> =
            answers.texts.iter().filter_map(|text| Some(text.rsplit_once(' ')?.1)).collect();
        let pass = answers.failed == 0 && instances.len() == 3;
        let detail = format!("{}: {}", answers.detail(), instances.into_iter().collect::<Vec<_>>().join(" "));
        steps.check(format!("{what} {host} leads to three pods of the other cluster"), pass, detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{binaries, manifest};

    #[test]
    fn every_scenario_has_manifests_that_parse() {
        let folder = binaries::workspace().join("deploy/manifests/scenarios");
        for scenario in &ALL {
            let objects = manifest::read(&folder.join(scenario.name)).unwrap();
            assert!(!objects.is_empty(), "{}", scenario.name);
        }
        let there =
            std::fs::read_dir(&folder).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(there, ALL.len());
    }
}
