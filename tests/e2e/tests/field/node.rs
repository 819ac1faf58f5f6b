//! Settings of a node: the agent's ports, and the plugin's log.

use anyhow::{Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::probe;
use serde_json::json;

use super::node_lab::{NodeLab, passed};
use super::own::OwnPort;

/// A port of statistics other than the usual one.
const STATS: u16 = 15_777;

pub(crate) fn c07_a_configured_port_of_the_agent_is_known_everywhere() -> Result<()> {
    lab::block_on(async {
        let setting = format!("statsPort: {STATS}");
        let own = OwnPort::new(&[("PROXY_CONFIG", &setting)]).await?;
        // Control: outside of the mesh.
        let direct = probe::get(own.netns(), &format!("127.0.0.1:{STATS}"), "/metrics").await?;
        ensure!(direct.body.contains("istio_build"), "{direct:?}");
        let (status, metrics) = own.get("ns/monitoring/sa/prometheus", STATS, "/metrics").await?;
        ensure!(status == 200 && metrics.contains("istio_build"), "{status}: {metrics}");
        // The usual one is any port now.
        ensure!(own.ask("ns/monitoring/sa/prometheus", 15020).await?.0 == 503);
        own.stop().await
    })
}

pub(crate) fn c13_a_log_level_of_the_plugin_fails_no_pod() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (plain, meshed) = (lab.sandbox("plain")?, lab.sandbox("a")?);
        lab.mode("a", Some("ambient"));
        let _node = lab.node().await?;
        let agent = lab.agent(&[("a", &meshed)], "")?;
        agent.line(&["agent started"]).await?;
        // The first one is the control.
        for level in ["info", "default:info,cni:info", "WARN", "all:debug", "nonsense", ""] {
            let more = json!({"plugin_log_level": level});
            for (name, pod) in [("plain", &plain), ("a", &meshed)] {
                let ran = lab.add_with(Some(("sample", name)), &pod.netns, pod.host.v4, &more).await?;
                passed(&ran, pod.host.v4)?;
                ensure!(pod.captured()?.is_empty() == (name == "plain"), "{name} with {level:?}");
            }
        }
        Ok(())
    })
}
