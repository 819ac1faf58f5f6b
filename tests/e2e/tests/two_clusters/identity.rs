//! Authorization rests on certificates, end to end: from a pod of one cluster to a pod of the other, through the gateway,
//! which sees only ciphertext.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isthmus_kit::hbone::client;
use isthmus_kit::lab;
use isthmus_kit::pki::Leaf;
use isthmus_rt::task::Tasks;

use super::playground::{HBONE, Playground, URL, by, idle_pod, pods_on_each_node};

/// West's gateway on the network between the clusters.
const GATEWAY: &str = "192.168.97.249";
const AUTHORITY: &str = "helloworld.sample.svc.cluster.local:5000";
/// An account of east that the policy does not name.
const OTHER: &str = "spiffe://cluster.local/ns/sample/sa/other";
const SLEEP: &str = "spiffe://cluster.local/ns/sample/sa/sleep";
/// Enough that each version is chosen: one of them never is once in half a million runs.
const NUMBER: usize = 20;
const V2: &str = "Hello version: v2,";
/// Longest time of a policy from the API server to the agent.
const ARRIVES: Duration = Duration::from_secs(10);

pub(crate) fn a_policy_matches_the_certificate_and_not_the_headers() -> Result<()> {
    let account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: other, namespace: sample}\n---\n";
    let pod = idle_pod("other", "sample", "other", "east-1");
    let more = [account, &pod, "---\n", &pods_on_each_node()].concat();
    let playground = Playground::up(&[("east/test.yaml", more)])?;
    lab::block_on(async {
        let ca = playground.ca("east")?;
        let (other, sleep) = (ca.workload(OTHER)?, ca.workload(SLEEP)?);
        // Control: without the policy the same client with the same headers is admitted.
        let (status, text) = through_the_gateway(&playground, &other).await?;
        ensure!(status == 200 && text.contains(V2), "the control failed: {status} {text:?}");
        ask(&playground, "east/other", true)?;

        playground.apply("west", "policies/only-east-sleep.yaml")?;
        let deadline = Instant::now() + ARRIVES;
        while through_the_gateway(&playground, &other).await?.0 == 200 {
            ensure!(Instant::now() < deadline, "the policy did not arrive in {ARRIVES:?}");
        }
        let (status, text) = through_the_gateway(&playground, &other).await?;
        ensure!(status == 401, "another account that tells of sleep: {status} {text:?}");
        ask(&playground, "east/other", false)?;
        let (status, text) = through_the_gateway(&playground, &sleep).await?;
        ensure!(status == 200 && text.contains(V2), "sleep: {status} {text:?}");
        ask(&playground, "east/sleep", true)
    })
}

/// Requests of a real pod through its agent: always answered by v1, which admits the whole mesh, and by v2 if allowed.
fn ask(playground: &Playground, pod: &str, allowed: bool) -> Result<()> {
    let outcomes = playground.request(&playground.pod(pod)?, URL, NUMBER)?;
    let (v1, v2) = (by("v1", &outcomes), by("v2", &outcomes));
    println!("{pod}: {v1} by v1, {v2} by v2 of {NUMBER}");
    let refused = outcomes.iter().filter(|outcome| outcome.status.is_none()).count();
    ensure!(v1 > 0 && v1 + v2 + refused == NUMBER, "{pod}: {outcomes:?}");
    ensure!(if allowed { v2 > 0 && refused == 0 } else { v2 == 0 && refused > 0 }, "{pod}: {outcomes:?}");
    Ok(())
}

/// A tunnel to west's gateway and another one inside it to v2, both with the leaf and with headers that claim to be
/// `sleep`; returns the inner status, and after 200 the application's answer.
async fn through_the_gateway(playground: &Playground, leaf: &Leaf) -> Result<(u16, String)> {
    let sleep = playground.pod("east/sleep")?;
    let forged = [
        (
            "baggage",
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.deployment.name=sleep,service.name=sleep,\
             source.principal=spiffe://cluster.local/ns/sample/sa/sleep",
        ),
        ("forwarded", &*format!("for=\"{}:40000\";host=helloworld.sample.svc.cluster.local", sleep.ip)),
        ("x-forwarded-network", "east"),
        ("x-forwarded-client-cert", "By=x;URI=spiffe://cluster.local/ns/sample/sa/sleep"),
    ];
    let gateway: SocketAddr = format!("{GATEWAY}:{HBONE}").parse()?;
    let sockets = playground.sockets(&playground.pod("east/plain-east-1")?)?;
    let stream = sockets.connect(gateway, None, Duration::from_secs(5)).await?;
    let outer = client::tls(stream, Some(leaf), &leaf.root).await?;
    let (status, outer) = client::connect(outer, AUTHORITY, &forged).await?;
    ensure!(status == 200, "the gateway answers with {status}");
    let tasks = Tasks::new("through the gateway");
    let inner = client::tls(client::bytes(outer, &tasks), Some(leaf), &leaf.root).await?;
    let (status, inner) = client::connect(inner, AUTHORITY, &forged).await?;
    let text = if status == 200 {
        client::get(client::bytes(inner, &tasks), "/hello").await?
    } else {
        String::new()
    };
    Ok((status, text))
}
