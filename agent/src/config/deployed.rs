//! The settings of a gateway that istiod deployed from its own template (`proxy waypoint`): the same values under other
//! names, and a part of them as arguments. Only a template of the east-west class fits; a waypoint is an HTTP proxy, which
//! this program is not.

use super::pod_labels;
use super::source::{Reader, Strings};

/// Set by the template of the east-west class only.
const NETWORK_VIEW: &str = "ISTIO_META_REQUESTED_NETWORK_VIEW";
/// The label, and its value, of pods of that class.
const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "istio.io-eastwest-controller");

/// Our names over the template's variables and arguments.
pub struct Deployed<'a> {
    strings: &'a dyn Strings,
    domain: Option<String>,
}

impl<'a> Deployed<'a> {
    /// The settings of an east-west gateway with these arguments; `None` when istiod deployed something else.
    #[must_use]
    pub fn east_west(strings: &'a dyn Strings, args: &[String]) -> Option<Self> {
        let labels = pod_labels::read(&Reader::new(strings));
        let (label, value) = MANAGED;
        let is_east_west = strings.get(NETWORK_VIEW).is_some_and(|network| !network.is_empty())
            || labels.get(label).is_some_and(|found| found == value);
        is_east_west.then(|| Self { strings, domain: domain(args) })
    }

    fn renamed(&self, key: &str) -> Option<String> {
        match key {
            "NETWORK" => self.strings.get(NETWORK_VIEW).or_else(|| self.strings.get("ISTIO_META_NETWORK")),
            "NODE_NAME" => self.strings.get("ISTIO_META_NODE_NAME"),
            "CA_ADDRESS" => self.strings.get("CA_ADDR"),
            "CLUSTER_DOMAIN" => self.domain.clone(),
            _ => None,
        }
    }
}

impl Strings for Deployed<'_> {
    fn get(&self, key: &str) -> Option<String> {
        self.strings.get(key).or_else(|| self.renamed(key))
    }

    fn all(&self) -> Vec<(String, String)> {
        self.strings.all()
    }
}

/// The cluster's domain in `--domain <namespace>.svc.<domain>`.
fn domain(args: &[String]) -> Option<String> {
    let at = args.iter().position(|arg| arg == "--domain")?;
    args.get(at + 1)?.split_once(".svc.").map(|(_, domain)| domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn template(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let all = [
            ("ISTIO_META_NODE_NAME", "node-1"),
            ("ISTIO_META_NETWORK", "west"),
            ("ISTIO_META_CLUSTER_ID", "c-west"),
            ("CA_ADDR", "istiod.istio-system.svc:15012"),
            ("POD_NAME", "gw-1"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "gw"),
            ("TRUST_DOMAIN", "example.org"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            (
                "PROXY_CONFIG",
                "{\"discoveryAddress\":\"istiod.istio-system.svc:15012\",\"drainDuration\":\"45s\"}",
            ),
        ];
        all.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_template_of_the_east_west_class_is_a_gateway() {
        let env = template(&[(NETWORK_VIEW, "west")]);
        let args = ["--domain", "istio-system.svc.corp.example"].map(str::to_owned);
        let config = crate::config::gateway::read(&Deployed::east_west(&env, &args).unwrap()).unwrap();
        let local = &config.base.local_info;
        let place = format!("{} {} {}", local.network, local.node, local.cluster);
        assert_eq!(place, "west node-1 c-west");
        assert_eq!(local.domain, "corp.example");
        assert_eq!(config.identity.to_string(), "spiffe://example.org/ns/istio-system/sa/gw");
        assert_eq!(config.base.xds.unwrap().address, "https://istiod.istio-system.svc:15012");
    }

    #[test]
    fn a_waypoint_is_none() {
        assert!(Deployed::east_west(&template(&[]), &[]).is_none());
        let dir = tempfile::tempdir().unwrap();
        let labels = dir.path().join("labels");
        std::fs::write(&labels, "gateway.istio.io/managed=\"istio.io-eastwest-controller\"\n").unwrap();
        let env = template(&[("POD_LABELS_PATH", labels.to_str().unwrap())]);
        assert!(Deployed::east_west(&env, &[]).is_some(), "the label says what the variable does not");
    }
}
