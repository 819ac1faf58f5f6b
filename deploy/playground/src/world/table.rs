//! Tables as istioctl prints them: columns as wide as their widest cell, one space between. Pure.

use serde::Serialize;
use serde_json::Value;

use playground_k8s::manifest::object;

/// One row of `istioctl ztunnel-config workload`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: String,
    pub(crate) waypoint: String,
    pub(crate) protocol: String,
}

/// The rows of an agent's dump for one namespace, sorted as istioctl sorts them.
pub(crate) fn workloads(dump: &Value, namespace: &str) -> Vec<Workload> {
    let rows = object::list(dump, "/workloads").iter().filter(|workload| workload["namespace"] == namespace);
    let mut rows: Vec<_> = rows.map(row).collect();
    rows.sort();
    rows
}

fn row(workload: &Value) -> Workload {
    let text = |pointer: &str| object::text(workload, pointer).to_owned();
    let or = |value: String, otherwise: &str| if value.is_empty() { otherwise.to_owned() } else { value };
    let addresses = object::texts(workload, "/workloadIps").collect::<Vec<_>>().join(",");
    Workload {
        namespace: text("/namespace"),
        name: text("/name"),
        address: or(or(addresses, object::text(workload, "/hostname")), "-"),
        node: or(text("/node"), "-"),
        waypoint: or(text("/waypoint/destination"), "None"),
        protocol: text("/protocol"),
    }
}

/// The table with istioctl's header.
pub(crate) fn workload_table(rows: &[Workload]) -> String {
    let header = ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"].map(str::to_owned);
    let cells = rows.iter().cloned();
    let cells = cells.map(|row| [row.namespace, row.name, row.address, row.node, row.waypoint, row.protocol]);
    render(&std::iter::once(header).chain(cells).collect::<Vec<_>>())
}

/// Rows of cells as text.
pub(crate) fn render<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$} ")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_istioctls() {
        let dump = json!({"workloads": [
            {"namespace": "sample", "name": "sleep-1", "workloadIps": ["10.21.1.4"], "node": "west-1", "protocol": "HBONE"},
            {"namespace": "other", "name": "x", "workloadIps": [], "protocol": "TCP"},
            {"namespace": "sample", "name": "east/SplitHorizonWorkload/a", "workloadIps": [], "protocol": "HBONE",
             "networkGateway": {"destination": "east/192.168.97.248"}},
        ]});
        let want = "\
NAMESPACE POD NAME                    ADDRESS   NODE   WAYPOINT PROTOCOL
sample    east/SplitHorizonWorkload/a -         -      None     HBONE
sample    sleep-1                     10.21.1.4 west-1 None     HBONE
";
        assert_eq!(workload_table(&workloads(&dump, "sample")), want);
    }
}
