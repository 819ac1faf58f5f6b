//! Labels of the process' own pod, from a file of the downward API: one `key="value"` a line, as the kubelet writes them.

use std::collections::BTreeMap;

use super::source::Reader;

/// The label that names the Gateway of a pod.
pub(super) const GATEWAY_NAME: &str = isthmus_gateway_api::GATEWAY_NAME;
/// Where istiod's templates mount the file.
const PATH: &str = "/etc/istio/pod/labels";

/// The labels in the file of `POD_LABELS_PATH`; none when it does not exist.
pub(super) fn read(r: &Reader<'_>) -> BTreeMap<String, String> {
    let path = r.text("POD_LABELS_PATH").unwrap_or_else(|| PATH.to_owned());
    std::fs::read_to_string(path).map(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &str) -> BTreeMap<String, String> {
    // Values of labels hold nothing that is escaped within the quotes.
    let label = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((key.to_owned(), value.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
    };
    text.lines().filter_map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_the_kubelet_writes_them() {
        let labels =
            parse("app=\"gw\"\ngateway.networking.k8s.io/gateway-name=\"east-west\"\nbroken\nempty=\"\"");
        assert_eq!(labels[GATEWAY_NAME], "east-west");
        assert_eq!((labels.len(), labels["empty"].as_str()), (3, ""));
    }
}
