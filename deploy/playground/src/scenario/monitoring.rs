//! Prometheus, the real one: in each cluster it scrapes the agents, and what the other cluster's has scraped comes to it
//! over the mesh.

use std::time::Duration;

use serde_json::Value;

use super::steps::Steps;

/// Several rounds of scraping and federating.
const PATIENCE: Duration = Duration::from_secs(30);
/// Agents of a cluster: one per node.
const AGENTS: usize = 2;

pub(super) fn play(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.apply(&steps.own(""), "both")?;
    let clusters = [("east", "west"), ("west", "east")];
    for (cluster, _) in clusters {
        let pod = format!("{cluster}/sleep");
        steps.answered_by("there is something to count", &pod, &["v1", "v2"])?;
    }
    for (cluster, other) in clusters {
        let healthy = |series: &[Series]| {
            series.len() == AGENTS
                && series.iter().all(|one| one.value == "1" && one.label("cluster").is_empty())
        };
        ask(steps, cluster, "its agents are scraped", r#"up{job="ztunnel",cluster=""}"#, healthy)?;
        let opened = r#"sum(istio_tcp_connections_opened_total{cluster="",reporter="source",source_workload="sleep"})"#;
        let counted = |series: &[Series]| matches!(series, [sum] if sum.number() >= 20.0);
        ask(steps, cluster, "the connections of its client are counted", opened, counted)?;
        let federated = format!(
            r#"istio_tcp_connections_opened_total{{cluster="{other}",reporter="source",source_workload="sleep"}}"#
        );
        let came = |series: &[Series]| {
            !series.is_empty() && series.iter().all(|one| one.label("source_cluster") == other)
        };
        ask(steps, cluster, &format!("{other}'s come over the mesh"), &federated, came)?;
    }
    Ok(())
}

/// One series of an answer.
struct Series {
    labels: Value,
    value: String,
}

// === impl Series ===

impl Series {
    fn label(&self, name: &str) -> &str {
        self.labels[name].as_str().unwrap_or_default()
    }

    fn number(&self) -> f64 {
        self.value.parse().unwrap_or_default()
    }
}

/// Asks a cluster's Prometheus until the answer is as it should be.
fn ask(
    steps: &mut Steps<'_>,
    cluster: &str,
    what: &str,
    query: &str,
    is_good: impl Fn(&[Series]) -> bool,
) -> anyhow::Result<()> {
    let escaped: String = query.bytes().map(escape).collect();
    let url = format!("http://127.0.0.1:9090/api/v1/query?query={escaped}");
    let mut last = Ok(Vec::new());
    let good = steps.until(PATIENCE, |steps| {
        last = steps
            .ask(&format!("{cluster}/prometheus"), &url, 1)
            .map(|answers| answers.texts.iter().next().map(|text| read(text)).unwrap_or_default());
        last.as_ref().is_ok_and(|series| is_good(series))
    });
    let last = last?;
    let shown: Vec<_> = last.iter().map(|one| format!("{}={}", one.label("instance"), one.value)).collect();
    steps.check(
        format!("{cluster}: {what}"),
        good,
        format!("{query}: {} series: {}", last.len(), shown.join(" ")),
    );
    Ok(())
}

fn escape(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

/// The series of an instant query's answer.
fn read(answer: &str) -> Vec<Series> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let result = answer.pointer("/data/result").and_then(Value::as_array);
    let series = |one: &Value| {
        let value = one.pointer("/value/1").and_then(Value::as_str).unwrap_or_default().to_owned();
        Series { labels: one["metric"].clone(), value }
    };
    result.map(|all| all.iter().map(series).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_series_by_series() {
        let text = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"instance":"a"},"value":[1.5,"1"]},{"metric":{},"value":[1.5,"20"]}]}}"#;
        let series = read(text);
        assert_eq!((series.len(), series[0].label("instance"), series[1].number()), (2, "a", 20.0));
        assert!(read("not JSON").is_empty());
        let escaped: String = r#"up{a="b"}"#.bytes().map(escape).collect();
        assert_eq!(escaped, "up%7Ba%3D%22b%22%7D");
    }
}
