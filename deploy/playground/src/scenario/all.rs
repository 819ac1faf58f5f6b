//! The scenarios, one function each.

use std::time::Duration;

use super::steps::{Answers, HELLO, Steps, outcomes};
use super::{Scenario, flood, monitoring};

/// Probes come every five seconds.
const PROBES: Duration = Duration::from_secs(30);

/// Every scenario.
pub(crate) const ALL: [Scenario; 8] = [
    Scenario {
        name: "failover",
        about: "while the local helloworld is there it answers; when it is gone the remote one does, and back",
        play: failover,
        needs: None,
    },
    Scenario {
        name: "two-cluster-policy",
        about: "an AuthorizationPolicy names a client of each cluster; everybody else is refused",
        play: two_cluster_policy,
        needs: None,
    },
    Scenario {
        name: "strict",
        about: "PeerAuthentication STRICT refuses clients outside of the mesh, and probes still work",
        play: strict,
        needs: None,
    },
    Scenario {
        name: "trust-domain-alias",
        about: "a policy that names an old trust domain holds while that is an alias of the mesh's",
        play: trust_domain_alias,
        needs: None,
    },
    Scenario {
        name: "plaintext-gateway",
        about: "240.240.0.10 and names of ServiceEntries lead to three pods through a plain TCP listener",
        play: plaintext_gateway,
        needs: None,
    },
    Scenario {
        name: "rollout",
        about: "pods of the other cluster are replaced one by one, and no request fails",
        play: rollout,
        needs: None,
    },
    Scenario {
        name: "flood",
        about: "a pod that floods new connections leaves its neighbour's p99 within twice the quiet one",
        play: flood::play,
        needs: None,
    },
    Scenario {
        name: "prometheus",
        about: "a Prometheus in each cluster scrapes its agents and federates the other's over the mesh",
        play: monitoring::play,
        needs: Some("prometheus"),
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
        let instances = answers.instances();
        let pass = answers.failed == 0 && instances.len() == 3;
        let detail = format!("{}: {}", answers.detail(), instances.into_iter().collect::<Vec<_>>().join(" "));
        steps.check(format!("{what} {host} leads to three pods of the other cluster"), pass, detail);
    }
    Ok(())
}

/// Requests while pods are replaced, at least.
const REQUESTS: usize = 1000;
const PER_SECOND: &str = "50";

fn rollout(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.delete(&steps.worlds("east/helloworld-v1.yaml"), "east")?;
    steps.apply(&steps.own(""), "both")?;
    let before = steps.ask("east/sleep", HELLO, 40)?;
    let old: Vec<String> = before.instances().into_iter().map(str::to_owned).collect();
    let pass = before.failed == 0 && old.len() == 3;
    steps.check(
        "three pods of the other cluster answer",
        pass,
        format!("{}: {}", before.detail(), old.join(" ")),
    );
    let gateway = steps.pod("west/istio-eastwestgateway")?;
    let carried = |steps: &Steps<'_>| steps.logged(&gateway, "connection complete");
    let before = carried(steps);
    let number = REQUESTS.to_string();
    let how = ["--rate", PER_SECOND, "-n", &number, "--kept", "10", "--json", "--hold"];
    let traffic = steps.send("east/sleep", HELLO, &how)?;
    steps.apply(&steps.own("next/helloworld.yaml"), "west")?;
    let sent = outcomes(&traffic.end()?)?;
    let (kept, own): (Vec<_>, Vec<_>) = sent.into_iter().partition(|outcome| outcome.kept);
    for (what, outcomes) in [("new connections", &own), ("connections that are kept alive", &kept)] {
        let answers = Answers::of(outcomes);
        let pass = answers.failed == 0 && answers.sent >= REQUESTS / 2;
        steps.check(format!("no request over {what} fails meanwhile"), pass, answers.detail());
        let new = answers.instances().into_iter().filter(|pod| !old.iter().any(|old| old == pod)).count();
        // A connection that is kept alive stays where it is until it must move: a few of them may not find every pod.
        let pass = new > 0 && new < answers.instances().len();
        let detail = format!("{}, {new} of them new", answers.instances().len());
        steps.check(format!("old and new pods answer over {what}"), pass, detail);
    }
    let tunnelled = steps.until(PROBES, |steps| carried(steps) >= before + own.len());
    let detail = format!("{} connections through west's gateway", carried(steps) - before);
    steps.check("they are carried by double HBONE", tunnelled, detail);
    let after = steps.ask("east/sleep", HELLO, 40)?;
    let left = after.instances().into_iter().filter(|pod| old.iter().any(|old| old == pod)).count();
    let pass = after.failed == 0 && left == 0 && after.instances().len() == 3;
    steps.check("only the new pods answer in the end", pass, after.detail());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binaries;
    use playground_k8s::manifest;

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
