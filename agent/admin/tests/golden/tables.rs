//! istioctl's tables: columns, order of the rows and padding, from nothing but the JSON of a dump.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

type Row = Vec<String>;

/// Cells as wide as the widest of their column and the padding; the last column is not padded.
fn table(header: &[&str], rows: Vec<Row>, padding: usize) -> String {
    let header: Row = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Row> = std::iter::once(header).chain(rows).collect();
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap() + padding;
    let widths: Vec<usize> = (0..columns - 1).map(width).collect();
    let line = |row: &Row| {
        let cells: String = widths.iter().zip(row).map(|(width, cell)| format!("{cell:<width$}")).collect();
        format!("{cells}{}\n", row[columns - 1])
    };
    rows.iter().map(line).collect()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn list<'a>(dump: &'a Value, key: &str) -> &'a [Value] {
    dump[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn workloads(dump: &Value) -> String {
    let mut all: Vec<&Value> = list(dump, "workloads").iter().collect();
    all.sort_by_key(|w| (format!("{}.{}", text(w, "namespace"), text(w, "name")), text(w, "node")));
    let row = |w: &&Value| {
        let addresses = texts(&w["workloadIps"]).join(",");
        let address = if addresses.is_empty() { text(w, "hostname").to_owned() } else { addresses };
        let protocol = text(w, "protocol");
        [text(w, "namespace"), text(w, "name"), &address, text(w, "node"), &waypoint(dump, w), protocol]
            .map(str::to_owned)
            .to_vec()
    };
    let header = ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"];
    table(&header, all.iter().map(row).collect(), 1)
}

/// The name of the service that a waypoint reference means.
fn waypoint(dump: &Value, object: &Value) -> String {
    let Some(to) = object["waypoint"]["destination"].as_str() else { return "None".to_owned() };
    let is = |service: &&Value| {
        format!("{}/{}", text(service, "namespace"), text(service, "hostname")) == to
            || texts(&service["vips"]).contains(&to)
    };
    list(dump, "services").iter().find(is).map_or("NA", |service| text(service, "name")).to_owned()
}

pub(crate) fn services(dump: &Value) -> String {
    let mut all: Vec<&Value> = list(dump, "services").iter().collect();
    all.sort_by_key(|s| (text(s, "namespace"), text(s, "name"), text(s, "hostname")));
    let healthy = |endpoint: &Value| {
        let of = |w: &&Value| text(w, "uid") == text(endpoint, "workloadUid");
        list(dump, "workloads").iter().find(of).is_some_and(|w| text(w, "status") == "Healthy")
    };
    let row = |s: &&Value| {
        let vips = texts(&s["vips"]);
        let vips: Vec<_> = vips.iter().map(|vip| vip.split_once('/').unwrap().1).collect();
        let endpoints = s["endpoints"].as_object().unwrap();
        let count = format!("{}/{}", endpoints.values().filter(|e| healthy(e)).count(), endpoints.len());
        [text(s, "namespace"), text(s, "name"), &vips.join(","), &waypoint(dump, s), &count]
            .map(str::to_owned)
            .to_vec()
    };
    let header = ["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"];
    table(&header, all.iter().map(row).collect(), 1)
}

pub(crate) fn policies(dump: &Value) -> String {
    let mut all: Vec<&Value> = list(dump, "policies").iter().collect();
    all.sort_by_key(|p| (text(p, "namespace"), text(p, "name")));
    let row =
        |p: &&Value| ["namespace", "name", "action", "scope"].map(|key| text(p, key).to_owned()).to_vec();
    table(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"], all.iter().map(row).collect(), 1)
}

pub(crate) fn certificates(dump: &Value) -> String {
    let mut rows = Vec::new();
    for entry in list(dump, "certificates") {
        let (identity, state) = (text(entry, "identity"), text(entry, "state"));
        let state = if state.contains("Unavailable") { "Unavailable" } else { state };
        let (chain, roots) = (list(entry, "certChain"), list(entry, "rootCerts"));
        if chain.is_empty() {
            rows.push([identity, "NA", state, "false", "NA", "NA", "NA"].map(str::to_owned).to_vec());
            continue;
        }
        let kinds = std::iter::once("Leaf").chain(std::iter::repeat("Intermediate"));
        for (cert, kind) in chain.iter().zip(kinds).chain(roots.iter().map(|root| (root, "Root"))) {
            let (from, until) = (text(cert, "validFrom"), text(cert, "expirationTime"));
            let now = isthmus_rt::log::timestamp(SystemTime::now());
            assert!(SystemTime::now() > UNIX_EPOCH && from.ends_with('Z') && until.ends_with('Z'));
            // All in UTC and in one notation, so texts compare as times do.
            let valid = (from < now.as_str() && now.as_str() < until).to_string();
            let serial: u128 = text(cert, "serialNumber").parse().unwrap();
            let serial = format!("{serial:x}");
            rows.push([identity, kind, state, &valid, &serial, until, from].map(str::to_owned).to_vec());
        }
    }
    let header =
        ["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    table(&header, rows, 5)
}

pub(crate) fn connections(dump: &Value) -> String {
    let mut pods: Vec<&Value> = dump["workloadState"].as_object().unwrap().values().collect();
    pods.sort_by_key(|pod| (text(&pod["info"], "namespace"), text(&pod["info"], "name")));
    let mut rows = Vec::new();
    for pod in pods {
        let name = format!("{}.{}", text(&pod["info"], "name"), text(&pod["info"], "namespace"));
        let open = &pod["connections"];
        for c in list(open, "inbound") {
            let (local, remote) = (named(dump, text(c, "actualDst")), named(dump, text(c, "src")));
            let target = text(c, "originalDst");
            rows.push(
                [&name, "Inbound", &local, &remote, target, text(c, "protocol")].map(str::to_owned).to_vec(),
            );
        }
        for c in list(open, "outbound") {
            let (local, remote) = (named(dump, text(c, "src")), named(dump, text(c, "actualDst")));
            let target = named(dump, text(c, "originalDst"));
            rows.push(
                [&name, "Outbound", &local, &remote, &target, text(c, "protocol")]
                    .map(str::to_owned)
                    .to_vec(),
            );
        }
    }
    table(&["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"], rows, 1)
}

/// An address whose IP is a service's first or a workload's, by that name.
fn named(dump: &Value, address: &str) -> String {
    let Some((ip, port)) = address.rsplit_once(':') else { return address.to_owned() };
    let at = |object: &Value, key: &str| {
        texts(&object[key]).first().is_some_and(|vip| vip.rsplit('/').next() == Some(ip))
    };
    if let Some(service) = list(dump, "services").iter().find(|service| at(service, "vips")) {
        return format!("{}:{port}", text(service, "hostname"));
    }
    if let Some(pod) = list(dump, "workloads").iter().find(|pod| at(pod, "workloadIps")) {
        return format!("{}.{}:{port}", text(pod, "name"), text(pod, "namespace"));
    }
    address.to_owned()
}
