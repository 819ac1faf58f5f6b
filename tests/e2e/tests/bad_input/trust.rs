//! Trust that changes while the agent runs: revocation lists and trust domain aliases in files, and a CA whose root has
//! expired.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::istiod::{Answer, Istiod, response};
use isthmus_kit::lab;
use isthmus_kit::pki::{Ca, Spec};
use isthmus_kit::wait::until;
use isthmus_proto::type_url;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::agent_lab::{AgentLab, count};
use crate::{PLANE, plane, serves, start};

/// The leaves that the CA signed, by identity.
type Leaves = Arc<Mutex<HashMap<String, String>>>;

const DIAL: Duration = Duration::from_secs(5);
const REVOKED: &str = "connection closed: peer certificate revoked by CRL";

/// Records what it signs.
fn remember(istiod: &Istiod, ca: &Arc<Ca>) -> Leaves {
    let leaves = Leaves::default();
    let (ca, notes) = (Arc::clone(ca), Arc::clone(&leaves));
    istiod.on_sign(move |signing| {
        let identity = signing.impersonated().unwrap_or_default().to_owned();
        let spec = Spec { uris: vec![identity.clone()], ..Spec::default() };
        match ca.sign(&signing.request.csr, &spec) {
            Ok(leaf) => {
                notes.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, leaf.clone());
                Answer::Chain(vec![leaf, ca.root_pem()])
            }
            // Not a chain: the agent refuses it and logs it.
            Err(_) => Answer::Chain(Vec::new()),
        }
    });
    leaves
}

/// Replaces a file atomically, as a mounted ConfigMap does.
fn replace(lab: &AgentLab, name: &str, text: &str) -> Result<()> {
    fs::write(lab.path("new"), text)?;
    Ok(fs::rename(lab.path("new"), lab.path(name))?)
}

/// A connection between the pods that is open end to end.
async fn open(lab: &AgentLab) -> Result<TcpStream> {
    let to = SocketAddr::new(lab.server.v4.into(), 8080);
    let mut stream = lab.client.sockets().connect(to, None, DIAL).await?;
    stream.write_all(b"x").await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

/// Waits until the agent ends a connection.
async fn ends(mut stream: TcpStream) -> Result<()> {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut byte)).await;
    ensure!(read.context("the connection stays open")?.is_err(), "it did not end with a reset");
    Ok(())
}

pub(crate) fn a_revoked_peer_is_disconnected_and_a_broken_crl_changes_nothing() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        let leaves = remember(&istiod, &ca);
        let crl = lab.path("crl.pem").display().to_string();
        let env = [&plane(&lab, &ca)?[..], &[("CRL_PATH", crl.clone())]].concat();
        let agent = start(&lab, &env)?;
        let _node = serves(&lab, &mut istiod).await?;
        ensure!(
            count(&agent, &["revocation list does not exist", &crl]) == 1,
            "a missing file is reported once"
        );

        let connection = open(&lab).await?;
        let list = {
            let leaves = leaves.lock().unwrap_or_else(PoisonError::into_inner);
            let client = leaves.get("spiffe://cluster.local/ns/ns/sa/client").context("client's leaf")?;
            ca.crl(&[client])?
        };
        replace(&lab, "crl.pem", &list)?;
        ends(connection).await?;
        agent.line(&[REVOKED, "inbound", "closed_by=\"revocation\""]).await?;
        ensure!(lab.metric("istio_crl_policy_rejections_total{reporter=\"destination\"}").await >= 1);
        ensure!(lab.works().await.is_err(), "a revoked client was admitted");

        // A truncated file leaves the list in force and is reported once.
        replace(&lab, "crl.pem", &list[..list.len() / 2])?;
        agent.line(&["the last good ones stay in force", &crl]).await?;
        ensure!(lab.works().await.is_err(), "a broken file admits revoked clients");
        ensure!(lab.metric("isthmus_trust_file_rejected{file=\"crl\"}").await == 1);

        replace(&lab, "crl.pem", "")?;
        until("the revocation is lifted", async || lab.works().await.is_ok()).await?;
        ensure!(count(&agent, &["stay in force"]) == 1, "one line for one broken file");
        agent.stop().await?;
        Ok(())
    })
}

pub(crate) fn trust_domain_aliases_hold_while_the_mesh_config_lists_them() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        // The client's cluster has another trust domain, and the server's policy knows it by the server's.
        let local = lab.local().replace("serviceAccount: client", "serviceAccount: client, trustDomain: old")
            + "policies:\n- name: only\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  \
               rules: [[[{principals: [!Exact cluster.local/ns/ns/sa/client]}]]]\n";
        let mesh = lab.path("mesh").display().to_string();
        let none = "trustDomain: cluster.local\n";
        let alias = "trustDomain: cluster.local\ntrustDomainAliases: [old]\n";
        replace(&lab, "mesh", none)?;
        let more = [("MESH_CONFIG", mesh), ("LOCAL_XDS", local)];
        let agent = start(&lab, &[&plane(&lab, &ca)?[..], &more].concat())?;
        let mut node = lab.node()?;
        let stream = istiod.next_stream().await?;
        for (kind, nonce) in [(type_url::ADDRESS, "1"), (type_url::AUTHORIZATION, "2")] {
            stream.push(&response(kind, nonce, Vec::new(), &[]));
        }
        let _zds = lab.hand_over(&mut node).await?;
        lab.ready().await?;
        ensure!(lab.works().await.is_err(), "a foreign trust domain was admitted");
        agent.line(&["spiffe://old/ns/ns/sa/client", "an identity of trust domain cluster.local"]).await?;

        replace(&lab, "mesh", alias)?;
        until("the alias is one", async || lab.works().await.is_ok()).await?;
        let connection = open(&lab).await?;
        replace(&lab, "mesh", none)?;
        // The policy no longer matches this client.
        ends(connection).await?;
        agent.line(&["connection closed due to policy change"]).await?;
        ensure!(lab.works().await.is_err(), "an identity without an alias was admitted");
        replace(&lab, "mesh", "trustDomainAliases: 7")?;
        agent.line(&["mesh config cannot be used", "trustDomainAliases"]).await?;
        ensure!(lab.works().await.is_err(), "a broken file must admit no client");
        replace(&lab, "mesh", alias)?;
        until("the alias is one again", async || lab.works().await.is_ok()).await?;
        agent.stop().await?;
        Ok(())
    })
}

pub(crate) fn a_hanging_ca_is_logged_and_counted_and_traffic_continues() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let mut istiod = Istiod::start_at(PLANE, &ca).await?;
        // Certificates of a few seconds, so that their renewal comes while the test looks.
        let short = Arc::clone(&ca);
        istiod.on_sign(move |signing| {
            let mut spec = Spec::default();
            spec.uris.extend(signing.impersonated().map(str::to_owned));
            spec.not_before = std::time::SystemTime::now();
            spec.not_after = spec.not_before + Duration::from_secs(60);
            spec.not_before -= Duration::from_secs(50);
            match short.sign(&signing.request.csr, &spec) {
                Ok(leaf) => Answer::Chain(vec![leaf, short.root_pem()]),
                // Not a chain: the agent refuses it and logs it.
                Err(_) => Answer::Chain(Vec::new()),
            }
        });
        let agent = start(&lab, &plane(&lab, &ca)?)?;
        let _node = serves(&lab, &mut istiod).await?;
        istiod.on_sign(|_| Answer::Silence);
        agent.line(&["certificate renewal failed", "did not answer within"]).await?;
        ensure!(lab.metric("isthmus_certificate_signings_total{result=\"error\"}").await >= 1);
        lab.works().await?;
        ensure!(count(&agent, &["certificate renewal failed"]) == 1, "one line for one outage");
        agent.stop().await?;
        Ok(())
    })
}
