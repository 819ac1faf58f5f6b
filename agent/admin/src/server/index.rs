//! `/`: an HTML page with links and forms for everything that the admin interface offers.

use isthmus_model::AgentPorts;

use crate::build;
use crate::logging::LEVELS;

/// Kinds that a dump can be restricted to, with a description.
const KINDS: [(&str, &str); 10] = [
    ("certificates", "certificates of this node's workloads and their state"),
    ("config", "settings of this process, without secrets"),
    ("policies", "authorization policies"),
    ("services", "services and their endpoints"),
    ("stagedServices", "services that workloads refer to and that have not arrived from the control plane"),
    ("staticConfig", "workloads, services and policies from LOCAL_XDS_PATH or LOCAL_XDS"),
    ("version", "version, revision and compiler of this build"),
    ("workloads", "workloads of the mesh"),
    ("rejectedResources", "xDS resources that were rejected, with the reason"),
    ("workloadState", "enrolled pods of this node and their open connections"),
];

/// The page. `filter` is the log filter in force.
pub(super) fn page(filter: &str, ports: AgentPorts) -> String {
    let list: String = KINDS
        .iter()
        .map(|(kind, what)| format!("<li><a href=\"config_dump?kind={kind}\">{kind}</a>: {what}</li>\n"))
        .collect();
    let options: String = KINDS.iter().map(|(kind, _)| format!("<option>{kind}</option>")).collect();
    let levels: String = LEVELS.iter().map(|level| button(&format!("level={level}"), level)).collect();
    format!(
        "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>isthmus</title>
<style>body{{font-family:sans-serif;max-width:60em;margin:2em auto}}form{{display:inline}}</style></head><body>
<h1>isthmus {version}</h1>
<p>revision {revision}</p>
<h2>Config dump</h2>
<p><a href=\"config_dump\">Everything</a> (as <code>istioctl ztunnel-config</code> reads it), or one kind:</p>
<ul>
{list}</ul>
<p>Filter: empty fields match everything, names match exactly, and a certificate has the namespace and service account of
its identity.</p>
<form method=\"get\" action=\"config_dump\">
<label>kind <select name=\"kind\"><option value=\"\">any</option>{options}</select></label>
<label>namespace <input name=\"namespace\"></label>
<label>name <input name=\"name\"></label>
<button>show</button></form>
<h2>Logging</h2>
<p>Current filter: <code>{filter}</code>. Set the level of all scopes: {levels} {reset}</p>
<p>Set the level of one scope: <code>curl -X POST 'localhost:{admin}/logging?level=access:debug'</code>; separate several with
commas. Levels: off, error,
warn, info, debug, trace.</p>
<h2>Shutdown</h2>
<p><code>curl -X POST localhost:{admin}/quitquitquit</code> drains connections and ends the process, as SIGTERM does.</p>
<h2>Other endpoints</h2>
<p>Metrics: <code>/metrics</code> and <code>/stats/prometheus</code> on port {metrics}. Readiness: <code>/healthz/ready</code> on
port {readiness}.</p>
</body></html>
",
        admin = ports.admin,
        metrics = ports.metrics,
        readiness = ports.readiness,
        version = build::VERSION,
        revision = escaped(build::REVISION),
        filter = escaped(filter),
        reset = button("reset", "reset to the initial filter"),
    )
}

fn button(query: &str, text: &str) -> String {
    format!("<form method=\"post\" action=\"logging?{query}\"><button>{text}</button></form> ")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_buttons_are_present_and_texts_are_escaped() {
        let ports = AgentPorts { metrics: 15090, ..AgentPorts::default() };
        let page = page("info,<script>=debug", ports);
        assert!(page.contains("port 15090") && !page.contains("15020"), "the configured port is named");
        assert!(page.contains("info,&lt;script&gt;=debug") && !page.contains("<script>"));
        for (kind, _) in KINDS {
            assert!(page.contains(&format!("href=\"config_dump?kind={kind}\"")), "{kind}");
        }
        assert!(page.contains("action=\"logging?level=debug\"") && page.contains("action=\"logging?reset\""));
        assert!(!page.contains("action=\"quitquitquit"), "one click must not end the process");
    }
}
