//! Settings of `isthmus gateway`: the agent's variables for the control plane, plus its listeners and the name of the
//! Gateway object that declares others.

use std::path::PathBuf;

use isthmus_model::{Authority, HBONE_PORT, SpiffeId};

use super::agent::AgentConfig;
use super::pod_labels;
use super::source::{ConfigErrors, Reader, Strings};

/// Every setting of the gateway role.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Control plane, certificates, logging, endpoints: as for the agent.
    pub base: AgentConfig,
    /// SPIFFE identity that it proves on outer tunnels.
    pub identity: SpiffeId,
    /// Name of its Gateway object (`GATEWAY_NAME`, else the label of its pod); `None`: the settings alone count.
    pub gateway_name: Option<String>,
    /// Port of the HBONE listener that the settings ask for.
    pub hbone_port: u16,
    /// Whether there is an HBONE listener even if the Gateway declares none: when `GATEWAY_HBONE_PORT` is set.
    pub hbone_always: bool,
    /// TLS passthrough listeners, which route by SNI.
    pub sni: Vec<SniRoute>,
    /// TCP listeners that forward to one upstream.
    pub tcp: Vec<TcpRoute>,
    /// Kubeconfig of its cluster; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

/// One entry of `GATEWAY_SNI_ROUTES`: `<port>=<server name>@<upstream>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniRoute {
    /// Listener port.
    pub port: u16,
    /// Server name; matched exactly, without regard to case.
    pub name: String,
    /// Upstream: an address, or a service's `hostname:port`.
    pub to: Authority,
}

/// One entry of `GATEWAY_TCP_ROUTES`: `<port>=<upstream>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRoute {
    /// Listener port.
    pub port: u16,
    /// Upstream: an address, or a service's `hostname:port`.
    pub to: Authority,
}

/// Reads every setting.
///
/// # Errors
/// Every bad value, those of the agent's variables included.
pub fn read(strings: &dyn Strings) -> Result<GatewayConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let base = super::agent::read(strings);
    let r = &mut reader;
    let namespace = r.required("POD_NAMESPACE", "it is part of the gateway's SPIFFE identity");
    let account = r.required("SERVICE_ACCOUNT", "it is part of the gateway's SPIFFE identity");
    let trust_domain = r.text("TRUST_DOMAIN").unwrap_or_default();
    let gateway_name =
        r.text("GATEWAY_NAME").or_else(|| pod_labels::read(r).remove(pod_labels::GATEWAY_NAME));
    let hbone_always = r.text("GATEWAY_HBONE_PORT").is_some();
    let hbone_port: u16 = r.parsed("GATEWAY_HBONE_PORT", HBONE_PORT, "a port from 0 to 65535");
    let sni = entries(r, "GATEWAY_SNI_ROUTES", sni_route);
    let tcp = entries(r, "GATEWAY_TCP_ROUTES", tcp_route);
    let kubeconfig = super::kubeconfig::read(r);
    let identity = SpiffeId::new(trust_domain.as_str().into(), namespace.into(), account.into());
    match (base, reader.finish(())) {
        (Ok(mut base), Ok(())) => {
            base.descriptors.shared = false;
            Ok(GatewayConfig { base, identity, gateway_name, hbone_port, hbone_always, sni, tcp, kubeconfig })
        }
        (base, own) => Err(ConfigErrors(
            [base.err(), own.err()].into_iter().flatten().flat_map(|errors| errors.0).collect(),
        )),
    }
}

fn entries<T>(r: &mut Reader<'_>, key: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let text = r.text(key).unwrap_or_default();
    let mut found = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match parse(entry) {
            Some(route) => found.push(route),
            None => r.fail(format!("{key}: entry {entry:?} is not of the form {}", form(key))),
        }
    }
    found
}

fn form(key: &str) -> &'static str {
    if key == "GATEWAY_SNI_ROUTES" {
        "<port>=<server name>@<host or address>:<port>"
    } else {
        "<port>=<host or address>:<port>"
    }
}

fn sni_route(entry: &str) -> Option<SniRoute> {
    let (port, rest) = entry.split_once('=')?;
    let (name, to) = rest.split_once('@')?;
    (!name.is_empty()).then_some(())?;
    Some(SniRoute { port: port.parse().ok()?, name: name.to_owned(), to: to.parse().ok()? })
}

fn tcp_route(entry: &str) -> Option<TcpRoute> {
    let (port, to) = entry.split_once('=')?;
    Some(TcpRoute { port: port.parse().ok()?, to: to.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn sni_and_tcp_routes_are_parsed() {
        let config = read(&env(&[
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "gw"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            (
                "GATEWAY_SNI_ROUTES",
                "15012=istiod.istio-system.svc@10.0.0.1:15012, 15443=a.b@c.d.svc.cluster.local:80",
            ),
            ("GATEWAY_TCP_ROUTES", "8080=hello.demo.svc.cluster.local:80"),
        ]))
        .unwrap();
        assert_eq!(config.identity.to_string(), "spiffe://cluster.local/ns/istio-system/sa/gw");
        assert_eq!(config.sni.len(), 2);
        assert_eq!(config.tcp[0].to.to_string(), "hello.demo.svc.cluster.local:80");
    }

    #[test]
    fn errors_of_gateway_and_agent_settings_are_reported_together() {
        let found = read(&env(&[("GATEWAY_SNI_ROUTES", "x"), ("SECRET_TTL", "y")])).unwrap_err().0;
        for key in ["POD_NAMESPACE", "SERVICE_ACCOUNT", "GATEWAY_SNI_ROUTES", "SECRET_TTL", "KUBECONFIG"] {
            assert!(found.iter().any(|line| line.contains(key)), "{key}: {found:?}");
        }
    }
}
