//! The event that the CNI plugin posts to the node role (`POST /cmdadd` on `pluginevent.sock`), in istio-cni's JSON:
//! capitalised names are written, and the lower-case spellings that Go's decoder would accept are read too.

use serde::{Deserialize, Serialize};

/// A pod's sandbox was created and asks to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddEvent {
    /// Path of the pod's network namespace on the host.
    #[serde(alias = "netns", alias = "NetNS", alias = "netNS")]
    pub netns: String,
    /// Name of the pod.
    #[serde(alias = "podName", alias = "podname")]
    pub pod_name: String,
    /// Namespace of the pod.
    #[serde(alias = "podNamespace", alias = "podnamespace")]
    pub pod_namespace: String,
    /// Addresses that the earlier plugins of the chain gave to the pod.
    #[serde(rename = "IPs", alias = "ips", alias = "Ips", default)]
    pub ips: Vec<IpConfig>,
}

/// One address of a CNI result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpConfig {
    /// Index of the interface in the CNI result, if it names one.
    #[serde(alias = "interface", default)]
    pub interface: Option<i64>,
    /// The address with its mask.
    #[serde(alias = "address")]
    pub address: IpNet,
    /// The gateway, or an empty string.
    #[serde(alias = "gateway", default)]
    pub gateway: String,
}

/// Go's `net.IPNet` as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNet {
    /// The address.
    #[serde(rename = "IP", alias = "ip", alias = "Ip")]
    pub ip: std::net::IpAddr,
    /// Base64 of the mask's bytes; readers ignore it.
    #[serde(rename = "Mask", alias = "mask", default)]
    pub mask: String,
}

#[cfg(test)]
mod tests {
    use super::AddEvent;

    #[test]
    fn istio_cnis_json_is_decoded() {
        let text = r#"{"Netns":"/var/run/netns/cni-1","PodName":"p","PodNamespace":"n",
            "IPs":[{"Interface":0,"Address":{"IP":"10.0.0.5","Mask":"////AA=="},"Gateway":"10.0.0.1"}]}"#;
        let event: AddEvent = serde_json::from_str(text).unwrap();
        assert_eq!(event.ips[0].address.ip.to_string(), "10.0.0.5");
        let again: AddEvent = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
        assert_eq!(event, again);
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = serde_json::from_str::<AddEvent>(r#"{"PodName":"p","PodNamespace":"n"}"#).unwrap_err();
        assert!(error.to_string().contains("Netns"), "{error}");
    }
}
