//! The same traffic in two mirrored clusters, with ztunnel and ours on opposite sides: the log lines and metrics of
//! ztunnel in one cluster equal ours in the other, word for word.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::{lab, probe};

use super::logs::Line;
use super::playground::Pod;
use super::setup::{Mesh, TestRoute};

/// The client's node in east and the server's in west are ztunnel's.
const ZTUNNELS: [&str; 2] = ["east-1", "west-2"];
/// Bytes in each direction on each route.
const BYTES: usize = 1000;

pub(crate) fn logs_and_metrics_equal_ztunnels() -> Result<()> {
    lab::block_on(async {
        let mesh = Mesh::up(&ZTUNNELS)?;
        for way in TestRoute::ALL {
            mesh.carries(way, BYTES).await?;
            mesh.refuses(way).await?;
        }
        for (one, other) in [(TestRoute::ALL[0], TestRoute::ALL[1]), (TestRoute::ALL[2], TestRoute::ALL[3])] {
            let (one, other) = (mesh.lines(one, BYTES).await?, mesh.lines(other, BYTES).await?);
            for (one, other) in [(one.0, other.0), (one.1, other.1)] {
                let (one, other) = (mesh.nameless(&one)?, mesh.nameless(&other)?);
                let other: BTreeMap<_, _> =
                    other.into_iter().map(|(key, value)| (key, mirrored(&value))).collect();
                ensure!(one == other, "{one:#?}\n{other:#?}");
            }
        }
        let pairs = [(mesh.near("east")?, mesh.near("west")?), (mesh.far("west")?, mesh.far("east")?)];
        for (theirs, ours) in pairs {
            let (theirs, ours) = (mesh.series(&theirs).await?, mesh.series(&ours).await?);
            let ours: BTreeMap<_, _> = ours.iter().map(|(name, value)| (mirrored(name), *value)).collect();
            ensure!(theirs.len() >= 5, "{theirs:#?}");
            ensure!(theirs == ours, "{}", difference(&theirs, &ours));
        }
        mesh.both_versions_answer()?;
        mesh.no_family_is_lost(&mesh.near("east")?, &[&mesh.near("west")?, &mesh.far("east")?]).await?;
        mesh.admin_endpoints_agree(&mesh.near("east")?, &mesh.far("east")?).await
    })
}

impl Mesh {
    /// A line without the pods' names.
    fn nameless<'l>(&self, line: &'l Line) -> Result<BTreeMap<&'l str, String>> {
        let pods: Vec<_> =
            self.playground.pods()?.into_iter().filter(|pod| pod.name.contains("-v1-")).collect();
        let named = |value: &str| match pods.iter().find(|pod| pod.name == value) {
            Some(pod) => format!("a pod of {}", pod.name.split_once("-v1-").map_or("", |(name, _)| name)),
            None => value.to_owned(),
        };
        Ok(line.comparable().into_iter().map(|(key, value)| (key, named(value))).collect())
    }

    /// The `istio_tcp_` series of an agent, their labels in the agent's order.
    async fn series(&self, agent: &Pod) -> Result<BTreeMap<String, u64>> {
        let answer = probe::get(&*self.playground.netns(agent)?, "127.0.0.1:15020", "/metrics").await?;
        ensure!(answer.status == 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| line.starts_with("istio_tcp_"));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a value")?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        });
        series.collect()
    }
}

/// East for west and west for east, in names and in addresses.
fn mirrored(text: &str) -> String {
    let pairs = [("east", "west"), ("10.11.", "10.21."), ("192.168.97.248", "192.168.97.249")];
    let swap = |text: String, (one, other): &(&str, &str)| {
        text.replace(one, "\0").replace(other, one).replace('\0', other)
    };
    // The gateways have one name.
    pairs.iter().fold(text.to_owned(), swap).replace("westeast", "eastwest")
}

fn difference(theirs: &BTreeMap<String, u64>, ours: &BTreeMap<String, u64>) -> String {
    let only = |one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>| {
        let lines = one.iter().filter(|(name, value)| other.get(*name) != Some(*value));
        lines.map(|(name, value)| format!("\n  {name} {value}")).collect::<String>()
    };
    format!("only ztunnel has{}\nonly ours has{}", only(theirs, ours), only(ours, theirs))
}
