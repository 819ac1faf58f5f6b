//! The listeners that a Gateway object declares, as they come and go, and what the gateway writes into its status.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::pki::client_hello;
use isthmus_kit::{kube, lab, wait};
use serde_json::{Value, json};

use crate::gateway_lab::{GatewayLab, PLAIN, SOON, TLS};
use crate::{accepted, name, noise, read};

const NAME: &str = "istio-system/eastwest";

fn listener(name: &str, port: u16, protocol: &str, mode: Option<&str>) -> Value {
    let mut listener = json!({"name": name, "port": port, "protocol": protocol,
        "allowedRoutes": {"namespaces": {"from": "All"}}});
    if let Some(mode) = mode {
        listener["tls"] = json!({"mode": mode});
    }
    listener
}

fn gateway(listeners: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"namespace": "istio-system", "name": "eastwest", "generation": 1,
                     "labels": {"topology.istio.io/network": "west"}},
        "spec": {"gatewayClassName": "istio-east-west", "listeners": listeners},
    })
}

fn route(kind: &str, hostnames: &[&str]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": "sample", "name": "plain", "generation": 1},
        "spec": {"parentRefs": [{"name": "eastwest", "namespace": "istio-system"}], "hostnames": hostnames,
                 "rules": [{"backendRefs": [{"name": "plain", "port": 80}]}]},
    })
}

/// A cluster with a Gateway of an HBONE and a TLS listener, its Service, and a route.
fn with_object() -> Result<GatewayLab> {
    let lab = GatewayLab::new()?;
    lab.api.install_gateway_api(true);
    let listeners = [
        listener("mesh", 15008, "HBONE", Some("Terminate")),
        listener("tls", TLS, "TLS", Some("Passthrough")),
    ];
    lab.api.put("gateways", gateway(&listeners));
    lab.api.put("tlsroutes", route("TLSRoute", &["plain.example"]));
    let label = ("gateway.networking.k8s.io/gateway-name", "eastwest");
    let mut service = kube::service("istio-system", "eastwest", &[label]);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    lab.api.put("services", service);
    let app = SocketAddr::new(lab.pod("plain")?.v4.into(), 8080);
    lab::echo(&lab.pod("plain")?.sockets(), app, &lab.tasks)?;
    Ok(lab)
}

async fn ready(lab: &GatewayLab) -> Result<()> {
    let ready = async || lab.readiness().await.is_ok_and(|(ready, _)| ready).then_some(());
    wait::within(SOON, ready).await.context("it does not become ready")
}

/// Waits for what the Gateway's status says at a JSON pointer.
async fn says(lab: &GatewayLab, pointer: &str, want: Value) -> Result<()> {
    let read = || lab.api.get("gateways", NAME).pointer(pointer).cloned().unwrap_or_default();
    let said = async || (read() == want).then_some(());
    wait::within(SOON, said).await.with_context(|| format!("{pointer} is {}, not {want}", read()))
}

async fn exchanges(lab: &GatewayLab, port: u16, bytes: &[u8]) -> Result<()> {
    let answers = async || match lab.dial(port).await {
        Ok(stream) => lab::exchange(stream, bytes).await.is_ok_and(|answer| answer == bytes).then_some(()),
        Err(_) => None,
    };
    wait::within(SOON, answers).await.with_context(|| format!("port {port} does not lead to the service"))
}

pub(crate) fn listeners_follow_the_gateway_object_and_leave_open_connections_alone() -> Result<()> {
    lab::block_on(async {
        let lab = with_object()?;
        let gateway_process = lab.start(&[("FAKE_CA", "true"), ("GATEWAY_NAME", "eastwest")])?;
        ready(&lab).await?;
        says(&lab, "/status/addresses", json!([{"type": "IPAddress", "value": "192.0.2.1"}])).await?;
        says(&lab, "/status/listeners/1/attachedRoutes", json!(1)).await?;
        says(&lab, "/status/conditions/1/reason", json!("Programmed")).await?;
        let route_status = lab.api.get("tlsroutes", "sample/plain")["status"]["parents"][0].clone();
        ensure!(route_status["controllerName"] == "isthmus.io/east-west-gateway", "{route_status}");

        let hello = client_hello("plain.example")?;
        exchanges(&lab, TLS, &hello).await?;
        let mut open = lab.dial(TLS).await?;
        tokio::io::AsyncWriteExt::write_all(&mut open, &hello).await?;
        ensure!(read(&mut open, hello.len()).await? == hello);
        let pod = lab.serve("hello")?;
        let mut tunnel = lab.tunnel().await?;
        tunnel.ask(1, &name("hello")).await?;
        let mut inner = accepted(&pod).await?;
        ensure!(tunnel.answer().await? == (1, "200".to_owned()));

        // One listener comes, one goes.
        lab.api.put("tcproutes", route("TCPRoute", &[]));
        lab.api.change("gateways", NAME, |object| {
            object["metadata"]["generation"] = json!(2);
            object["spec"]["listeners"][1] = listener("tcp", PLAIN, "TCP", None);
        });
        exchanges(&lab, PLAIN, &noise(50_000)).await?;
        says(&lab, "/status/conditions/0/observedGeneration", json!(2)).await?;
        says(&lab, "/status/listeners/1/name", json!("tcp")).await?;
        let refused = async || lab.dial(TLS).await.is_err().then_some(());
        wait::within(SOON, refused).await.context("the listener that is gone accepts")?;

        // What was open before is open still.
        tokio::io::AsyncWriteExt::write_all(&mut open, b"still").await?;
        ensure!(read(&mut open, 5).await? == b"still");
        tunnel.0.data(1, b"ping", false).await?;
        ensure!(read(&mut inner, 4).await? == b"ping");
        tunnel.ask(3, &name("hello")).await?;
        drop(accepted(&pod).await?);
        ensure!(tunnel.answer().await? == (3, "200".to_owned()));
        drop((open, tunnel, inner));
        gateway_process.stop().await.map(drop)
    })
}

/// Both compute the same status: whichever comes first writes it, and then there is nothing to write.
pub(crate) fn replicas_write_a_status_once() -> Result<()> {
    lab::block_on(async {
        let lab = with_object()?;
        let env = [("FAKE_CA", "true"), ("GATEWAY_NAME", "eastwest")];
        let (first, second) = (lab.start(&env)?, lab.start_replica(&env)?);
        ready(&lab).await?;
        for replica in [&first, &second] {
            replica.line(&["listeners of the Gateway"]).await?;
        }
        says(&lab, "/status/conditions/1/reason", json!("Programmed")).await?;
        says(&lab, "/status/listeners/1/attachedRoutes", json!(1)).await?;
        // Another change makes both compute it again.
        for generation in 2..5 {
            lab.api.change("gateways", NAME, |object| object["metadata"]["generation"] = json!(generation));
            says(&lab, "/status/conditions/0/observedGeneration", json!(generation)).await?;
        }
        let written: usize = lab.api.patched("gateways", NAME);
        ensure!((4..=5).contains(&written), "{written} patches for the first status and three generations");
        first.stop().await?;
        second.stop().await.map(drop)
    })
}

pub(crate) fn without_crds_or_permission_the_settings_count() -> Result<()> {
    lab::block_on(async {
        let lab = with_object()?;
        lab.api.install_gateway_api(false);
        let route = format!("{PLAIN}=plain.sample.svc.cluster.local:80");
        let env = [("FAKE_CA", "true"), ("GATEWAY_NAME", "eastwest"), ("GATEWAY_TCP_ROUTES", route.as_str())];
        let gateway = lab.start(&env)?;
        gateway.line(&["kind=\"Gateway\"", "no such kind", "going on without it"]).await?;
        gateway.line(&["no Gateway of this name", "serving the settings"]).await?;
        serves_the_settings(&lab).await?;
        gateway.stop().await?;

        lab.api.install_gateway_api(true);
        for plural in ["gateways", "tlsroutes"] {
            lab.api.forbid(plural, true);
        }
        lab.api.refuse_patches(Some(403));
        let gateway = lab.start(&env)?;
        gateway.line(&["kind=\"Gateway\"", "cannot list resource", "going on without it"]).await?;
        serves_the_settings(&lab).await?;
        ensure!(lab.dial(TLS).await.is_err(), "it serves TLS without having read the Gateway");
        // The permission takes effect without a restart.
        for plural in ["gateways", "tlsroutes"] {
            lab.api.forbid(plural, false);
        }
        exchanges(&lab, TLS, &client_hello("plain.example")?).await?;
        exchanges(&lab, PLAIN, b"a port of the settings").await?;
        gateway.line(&["kind=\"Gateway\"", "status not written", "gateways/status"]).await?;
        gateway.stop().await.map(drop)
    })
}

pub(crate) fn what_istiod_deploys_of_its_east_west_class_is_a_gateway() -> Result<()> {
    lab::block_on(async {
        let lab = with_object()?;
        let gateway = lab.start_deployed("waypoint")?;
        gateway.line(&["listeners of the Gateway", "15008"]).await?;
        ready(&lab).await?;
        exchanges(&lab, TLS, &client_hello("plain.example")?).await?;
        let pod = lab.serve("hello")?;
        let mut tunnel = lab.tunnel().await?;
        tunnel.ask(1, &name("hello")).await?;
        drop(accepted(&pod).await?);
        ensure!(tunnel.answer().await? == (1, "200".to_owned()));
        gateway.stop().await?;
        let refused = lab.start_deployed("router")?;
        refused.line(&["proxy router is an HTTP proxy", "istio-east-west only"]).await.map(drop)
    })
}

async fn serves_the_settings(lab: &GatewayLab) -> Result<()> {
    ready(lab).await?;
    exchanges(lab, PLAIN, b"plain").await?;
    let pod = lab.serve("hello")?;
    let mut tunnel = lab.tunnel().await?;
    tunnel.ask(1, &name("hello")).await?;
    drop(accepted(&pod).await?);
    ensure!(tunnel.answer().await? == (1, "200".to_owned()));
    Ok(())
}
