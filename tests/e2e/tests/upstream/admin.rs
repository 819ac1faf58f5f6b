//! The admin, metrics and readiness endpoints of both programs, side by side.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::probe;
use serde_json::Value;

use super::playground::Pod;
use super::setup::Mesh;

/// Parts of the dump that come from the control plane: they are equal, not only alike.
const SAME: [&str; 4] = ["workloads", "services", "policies", "stagedServices"];
/// Parts whose keys are equal.
const ALIKE: [&str; 4] = ["certificates", "staticConfig", "version", "workloadState"];

impl Mesh {
    /// Two agents of one cluster, ztunnel and ours, give the same answers.
    pub(crate) async fn admin_endpoints_agree(&self, theirs: &Pod, ours: &Pod) -> Result<()> {
        let (theirs_dump, ours_dump) = (self.dump(theirs).await?, self.dump(ours).await?);
        for part in SAME {
            let (theirs, ours) = (&theirs_dump[part], &ours_dump[part]);
            ensure!(theirs == ours, "{part}: ztunnel has {theirs:#}\nours has {ours:#}");
        }
        for part in ALIKE {
            let (theirs, ours) = (keys(&theirs_dump[part]), keys(&ours_dump[part]));
            ensure!(theirs == ours, "{part}: {:?}", theirs.symmetric_difference(&ours).collect::<Vec<_>>());
        }
        let (theirs_keys, ours_keys) = (keys(&theirs_dump["config"]), keys(&ours_dump["config"]));
        // Options of a resolver library that we do not have.
        let lost = theirs_keys.difference(&ours_keys).filter(|key| !key.starts_with("/dnsResolverOpts/"));
        let lost: Vec<_> = lost.collect();
        ensure!(lost.is_empty(), "config: ours has no {lost:?}");

        for (port, path) in
            [(15021, "/healthz/ready"), (15021, "/nothing"), (15020, "/nothing"), (15000, "/nothing")]
        {
            let address = format!("127.0.0.1:{port}");
            let theirs = probe::get(&*self.playground.netns(theirs)?, &address, path).await?;
            let ours = probe::get(&*self.playground.netns(ours)?, &address, path).await?;
            ensure!(theirs == ours, "{address}{path}: {theirs:?} {ours:?}");
        }
        Ok(())
    }

    /// Every metric family of ztunnel is in ours too, with the same type.
    pub(crate) async fn no_family_is_lost(&self, theirs: &Pod, ours: &[&Pod]) -> Result<()> {
        let mut lost = self.families(theirs).await?;
        for agent in ours {
            let shown = self.families(agent).await?;
            lost.retain(|family| !shown.contains(family));
        }
        ensure!(lost.is_empty(), "/metrics: ours has no {lost:?}");
        Ok(())
    }

    async fn families(&self, agent: &Pod) -> Result<BTreeSet<String>> {
        let answer = probe::get(&*self.playground.netns(agent)?, "127.0.0.1:15020", "/metrics").await?;
        ensure!(answer.body.ends_with("# EOF\n"), "{answer:?}");
        Ok(answer.body.lines().filter(|line| line.starts_with("# TYPE ")).map(str::to_owned).collect())
    }

    async fn dump(&self, agent: &Pod) -> Result<Value> {
        let answer = probe::get(&*self.playground.netns(agent)?, "127.0.0.1:15000", "/config_dump").await?;
        serde_json::from_str(&answer.body).with_context(|| answer.body.clone())
    }
}

/// The paths to all values. Elements of lists, and of maps whose keys are data, count as one.
fn keys(value: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    walk(value, "", &mut all);
    all
}

fn walk(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                // The UIDs of pods.
                let is_uid = key.len() == 36 && key.matches('-').count() == 4;
                let path = format!("{path}/{}", if is_uid { "*" } else { key });
                all.insert(path.clone());
                walk(value, &path, all);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| walk(value, &format!("{path}/*"), all)),
        _ => {}
    }
}
