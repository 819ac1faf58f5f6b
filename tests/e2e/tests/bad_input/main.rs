//! Bad settings, files and peers, with the real programs: each defect is one log line that names it, and what works goes
//! on working.

mod agent_lab;
mod policies;
mod settings;
mod trust;

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::istiod::{Istiod, raw_resource, response};
use isthmus_kit::lab;
use isthmus_kit::pki::Ca;
use isthmus_kit::process::Process;
use isthmus_kit::wait::until;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer, add};
use isthmus_proto::type_url;
use isthmus_sys::netns::Netns;
use serde_json::Value;

use agent_lab::{AgentLab, complaints, count};

/// The address of the scripted control plane.
const PLANE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15012);
const URL: &str = "https://127.0.0.1:15012";

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        settings::every_bad_setting_is_named_before_the_role_does_anything,
        settings::an_unknown_field_of_the_local_file_is_named,
        settings::an_unknown_key_of_the_proxy_config_only_warns,
        a_missing_token_is_one_log_line_and_may_appear_later,
        an_unreachable_control_plane_is_one_log_line_and_may_appear_later,
        trust::a_revoked_peer_is_disconnected_and_a_broken_crl_changes_nothing,
        trust::trust_domain_aliases_hold_while_the_mesh_config_lists_them,
        trust::a_hanging_ca_is_logged_and_counted_and_traffic_continues,
        garbage_from_the_control_plane_is_one_log_line_and_pods_stay_served,
        garbage_from_the_node_role_is_one_log_line_and_pods_stay_served,
        policies::an_undecodable_policy_denies_its_namespace_until_it_is_removed,
        bad_cni_input_is_an_error_that_names_the_field,
        a_manifest_that_does_not_parse_is_named
    ])
}

/// The environment of an agent whose control plane is the scripted one.
fn plane(lab: &AgentLab, ca: &Ca) -> Result<[(&'static str, String); 5]> {
    let (root, token) = (lab.path("root.pem"), lab.path("token"));
    fs::write(&root, ca.root_pem())?;
    Ok([
        ("XDS_ADDRESS", URL.to_owned()),
        ("CA_ADDRESS", URL.to_owned()),
        ("XDS_ROOT_CA", root.display().to_string()),
        ("CA_ROOT_CA", root.display().to_string()),
        ("AUTH_TOKEN", token.display().to_string()),
    ])
}

fn start(lab: &AgentLab, env: &[(&'static str, String)]) -> Result<Process> {
    let env: Vec<_> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    lab.agent(&env)
}

/// After several failed attempts: each outage is one line, the process runs, shows the state that it has, and its
/// readiness names what it waits for.
async fn waits_for_its_control_plane(lab: &AgentLab, agent: &Process, named: &str) -> Result<()> {
    until("the third attempt", async || lab.metric("istio_xds_connection_terminations").await >= 3).await?;
    agent.line(&["no certificate", named]).await?;
    let xds = count(agent, &["xDS stream ended, the last configuration stays in force", named]);
    ensure!(xds == 1, "{xds} lines in {:#?}", complaints(agent));
    // The CA is another outage, of each identity.
    for identity in ["sa/client", "sa/server"] {
        let certificate = count(agent, &["no certificate", identity, named]);
        ensure!(certificate == 1, "{identity}: {certificate} lines in {:#?}", complaints(agent));
    }
    ensure!(complaints(agent).len() == 3, "{:#?}", complaints(agent));
    let readiness = lab.readiness().await?;
    ensure!(readiness.status == 500 && readiness.body.contains("state manager"), "{readiness:?}");
    let dump = lab.dump().await?;
    ensure!(dump["workloads"].as_array().map(Vec::len) == Some(2), "{}", dump["workloads"]);
    Ok(())
}

/// The control plane sends empty responses, and the agent serves its pods; returns the node role, to be kept.
async fn serves(lab: &AgentLab, plane: &mut Istiod) -> Result<(ZdsServer, ZdsPeer)> {
    let mut node = lab.node()?;
    let stream = plane.next_stream().await?;
    for (kind, nonce) in [(type_url::ADDRESS, "1"), (type_url::AUTHORIZATION, "2")] {
        stream.push(&response(kind, nonce, Vec::new(), &[]));
    }
    let agent = lab.hand_over(&mut node).await?;
    lab.ready().await?;
    until("the certificates are there", async || lab.works().await.is_ok()).await?;
    Ok((node, agent))
}

fn a_missing_token_is_one_log_line_and_may_appear_later() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        let agent = start(&lab, &plane(&lab, &ca)?)?;
        let token = lab.path("token").display().to_string();
        waits_for_its_control_plane(&lab, &agent, &format!("token file {token}: No such file")).await?;
        ensure!(istiod.signings().is_empty(), "no certificate is requested without a token");
        fs::write(token, "a token")?;
        let _node = serves(&lab, &mut istiod).await?;
        agent.stop().await?;
        Ok(())
    })
}

fn an_unreachable_control_plane_is_one_log_line_and_may_appear_later() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let agent = start(&lab, &plane(&lab, &ca)?)?;
        waits_for_its_control_plane(&lab, &agent, "127.0.0.1:15012: Connection refused").await?;
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        let _node = serves(&lab, &mut istiod).await?;

        // It stops again: one log line, and no effect on traffic.
        istiod.stop().await;
        until("the loss is noticed", async || count(&agent, &["xDS stream ended"]) > 1).await?;
        lab.works().await?;
        lab.ready().await?;
        agent.stop().await?;
        Ok(())
    })
}

fn garbage_from_the_control_plane_is_one_log_line_and_pods_stay_served() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        let agent = start(&lab, &plane(&lab, &ca)?)?;
        let _node = serves(&lab, &mut istiod).await?;

        // Not a message: the stream is reopened, once for each.
        for (at, garbage) in [&b"\xff\xff\xff\xffgarbage"[..], b"HTTP/1.1 200 OK\r\n\r\n"].iter().enumerate()
        {
            // The first stream ended with the script that filled it.
            let mut stream = istiod.next_stream().await?;
            stream.subscriptions().await?;
            stream.push_raw(*garbage);
            until("the line", async || count(&agent, &["xDS stream ended", "decode"]) == at + 1).await?;
            lab.works().await?;
        }
        // A message whose resource is garbage is refused by name, and the stream goes on.
        let mut stream = istiod.next_stream().await?;
        stream.subscriptions().await?;
        let bad = raw_resource(type_url::ADDRESS, "c1//Pod/ns/odd", "1", b"\xff\xffgarbage".to_vec());
        stream.push(&response(type_url::ADDRESS, "n1", vec![bad], &[]));
        let nack = stream.recv().await?;
        let detail = nack.error_detail.context("it was accepted")?;
        ensure!(nack.response_nonce == "n1" && detail.message.contains("c1//Pod/ns/odd"), "{detail:?}");
        agent.line(&["xDS resource refused", "c1//Pod/ns/odd"]).await?;
        ensure!(count(&agent, &["c1//Pod/ns/odd"]) == 1, "{:#?}", complaints(&agent));
        // And one of a type that was not subscribed to.
        stream.push(&response("type.googleapis.com/odd.Type", "n2", Vec::new(), &[]));
        lab.works().await?;
        lab.ready().await?;
        agent.stop().await?;
        Ok(())
    })
}

fn garbage_from_the_node_role_is_one_log_line_and_pods_stay_served() -> Result<()> {
    lab::block_on(async {
        let lab = AgentLab::new()?;
        let mut node = lab.node()?;
        let agent = lab.agent(&[("FAKE_CA", "true")])?;
        let mut peer = lab.hand_over(&mut node).await?;
        lab.works().await?;
        let odd = ZdsPod { uid: "odd", name: "odd", namespace: "ns", service_account: "odd" };
        let nameless = ZdsPod { uid: "", ..odd };
        let file = fs::File::open("/proc/self/status")?;
        let (file, pod) = (file.as_fd(), lab.client.netns.fd());
        let packets: [(&[u8], &[BorrowedFd<'_>], &str); 5] = [
            (b"\xff\xff\xff\xffgarbage", &[], "a packet of 11 bytes is no ZDS request"),
            (b"\x7a\x00", &[], "a packet of 2 bytes carries no request that is known"),
            (&add(&odd), &[], "add of pod odd carries 0 file descriptors instead of 1"),
            (&add(&odd), &[pod, pod], "add of pod odd carries 2 file descriptors instead of 1"),
            (&add(&nameless), &[pod], "add has an empty uid"),
        ];
        for (packet, files, named) in packets {
            peer.send_with(packet, files).await?;
            let answer = peer.answer().await?.with_context(|| format!("{named}: it was taken"))?;
            ensure!(answer.contains(named), "{answer}");
            ensure!(answer.len() < 1000 && !answer.contains("backtrace"), "{answer}");
            peer.expect_closed().await?;
            agent.line(&[named]).await?;
            ensure!(count(&agent, &[named]) == 1, "{:#?}", complaints(&agent));
            // Pods are served while the agent reconnects, and after.
            lab.works().await?;
            peer = lab.hand_over(&mut node).await?;
            lab.works().await?;
        }
        // A valid request that fails does not end the connection.
        peer.send_with(&add(&odd), &[file]).await?;
        let answer = peer.answer().await?.context("it was accepted")?;
        ensure!(answer.contains("odd") && answer.contains("namespace"), "{answer}");
        ensure!(answer.len() < 1000 && !answer.contains("backtrace"), "{answer}");
        agent.line(&["pod could not be started", "odd", "namespace"]).await?;
        ensure!(peer.del("odd").await?.is_none());
        lab.works().await?;
        ensure!(
            !complaints(&agent).iter().any(|line| line.contains("panicked")),
            "{:#?}",
            complaints(&agent)
        );
        agent.stop().await?;
        Ok(())
    })
}

fn bad_cni_input_is_an_error_that_names_the_field() -> Result<()> {
    lab::block_on(async {
        let own = Netns::current()?;
        let whole = r#"{"cniVersion":"1.1.0","name":"n","type":"isthmus-cni","cni_agent_run_dir":"/nowhere""#;
        let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=a";
        let cases = [
            (String::new(), args, 6, "stdin is not a JSON object"),
            (whole.to_owned(), args, 6, "stdin is not a JSON object"),
            ("[]".to_owned(), args, 6, "stdin is not a JSON object"),
            (format!("{whole},\"enablement_selectors\":{{}}}}"), args, 7, "enablement_selectors"),
            (
                format!("{whole},\"prevResult\":{{\"ips\":[{{\"address\":\"x\"}}]}}}}"),
                args,
                7,
                "prevResult.ips[0]",
            ),
            (format!("{whole}}}"), "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c", 4, "K8S_POD_NAMESPACE=\"a/b\""),
            (format!("{whole}}}"), args, 11, "/nowhere/istio-cni-kubeconfig"),
        ];
        for (stdin, args, code, named) in cases {
            let env = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "sandbox"),
                ("CNI_NETNS", "/var/run/netns/a"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/opt/cni/bin"),
                ("CNI_ARGS", args),
            ];
            let ran = Process::start(&own, "isthmus-cni", &[], &env, &stdin)?.ended().await?;
            ensure!(ran.status.code() == Some(1), "{stdin}: {ran:?}");
            let error: Value = serde_json::from_str(&ran.stream(false).concat())?;
            let said = format!("{} {}", error["msg"], error["details"]).replace("\\\"", "\"");
            ensure!(error["code"] == code && said.contains(named), "{stdin}: {error}");
        }
        Ok(())
    })
}

fn a_manifest_that_does_not_parse_is_named() -> Result<()> {
    lab::block_on(async {
        let dir = tempfile::tempdir()?;
        let manifests = dir.path().join("manifests");
        for folder in ["common", "east", "west"] {
            fs::create_dir_all(manifests.join(folder))?;
        }
        let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: sample}\n";
        let file = manifests.join("west/pods.yaml");
        let cases = [
            ("kind: [", "document 2"),
            ("apiVersion: v1\nkind: Gadget\nmetadata: {name: a}\n", "Gadget"),
            ("apiVersion: v1\nkind: Namespace\nmetadata: {}\n", "metadata.name"),
            ("just words\n", "apiVersion and kind"),
        ];
        let (state, manifests) = (dir.path().join("lab"), manifests.display().to_string());
        let state = state.display().to_string();
        let args = ["--dir", &state, "--manifests", &manifests];
        for (bad, why) in cases {
            fs::write(&file, format!("{good}---\n{bad}"))?;
            let ran = Process::start(&Netns::current()?, "playground", &args, &[], "")?.ended().await?;
            let said = ran.stream(true);
            ensure!(ran.status.code() == Some(1) && ran.stream(false).is_empty(), "{ran:?}");
            ensure!(said.len() == 1, "{said:#?}");
            let place = format!("{}: document 2: ", file.display());
            ensure!(said[0].contains(&place) && said[0].contains(why), "{bad}: {said:?}");
        }
        Ok(())
    })
}
