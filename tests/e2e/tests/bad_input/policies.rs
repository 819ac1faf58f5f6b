//! Policies that cannot be decoded, with the real program: what they might have refused is refused until they are
//! removed.

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::istiod::{AdsStream, Istiod, raw_resource, response};
use isthmus_kit::lab;
use isthmus_kit::pki::Ca;
use isthmus_kit::wait::until;
use isthmus_proto::type_url;

use crate::agent_lab::AgentLab;
use crate::{plane, serves, start};

const AUTHORIZATION: &str = type_url::AUTHORIZATION;

/// Each is refused alone, named in the log, the dump and the NACK, stays in force across a reconnect, and is lifted by
/// its removal. The first one is for a namespace without pods and has no effect on traffic.
pub(crate) fn an_undecodable_policy_denies_its_namespace_until_it_is_removed() -> Result<()> {
    lab::block_on(async {
        let (lab, ca) = (AgentLab::new()?, Arc::new(Ca::new("root")?));
        fs::write(lab.path("token"), "a token")?;
        let mut istiod = Istiod::start_at(crate::PLANE, &ca).await?;
        let agent = start(&lab, &plane(&lab, &ca)?)?;
        let _node = serves(&lab, &mut istiod).await?;
        let mut stream = istiod.next_stream().await?;
        stream.subscriptions().await?;
        refused(&mut stream, "elsewhere/odd").await?;
        lab.works().await?;
        refused(&mut stream, "ns/odd").await?;
        until("the pod is closed", async || lab.works().await.is_err()).await?;
        ensure!(lab.metric("isthmus_xds_rejected_resources").await == 2, "the metric does not count it");
        let dump = lab.dump().await?;
        let names: Vec<_> =
            dump["rejectedResources"].as_array().context("list")?.iter().map(|one| &one["name"]).collect();
        ensure!(names == ["elsewhere/odd", "ns/odd"], "{names:?}");
        lab.ready().await?;

        drop(stream);
        let mut stream = istiod.next_stream().await?;
        let [_, policies] = stream.subscriptions().await?;
        let held = &policies.initial_resource_versions;
        ensure!(held.get("ns/odd").is_some_and(String::is_empty), "{held:?}");
        ensure!(lab.works().await.is_err(), "a reconnect opened it");
        stream.push(&response(AUTHORIZATION, "gone", Vec::new(), &["ns/odd"]));
        ensure!(stream.recv().await?.error_detail.is_none(), "the removal was refused");
        until("the pod is open", async || lab.works().await.is_ok()).await?;
        ensure!(lab.metric("isthmus_xds_rejected_resources").await == 1, "the metric does not count it");
        agent.stop().await?;
        Ok(())
    })
}

/// Pushes an undecodable policy and reads its refusal.
async fn refused(stream: &mut AdsStream, name: &str) -> Result<()> {
    let noise = raw_resource(AUTHORIZATION, name, "1", b"\xff\xffgarbage".to_vec());
    stream.push(&response(AUTHORIZATION, name, vec![noise], &[]));
    let detail = stream.recv().await?.error_detail.context("it was accepted")?;
    ensure!(detail.message.starts_with(name), "{detail:?}");
    Ok(())
}
