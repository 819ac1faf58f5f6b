//! Settings of `isthmus gateway`: the agent's variables for the control plane, plus which listeners it has beside HBONE.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use isthmus_model::{Authority, HBONE_PORT, SpiffeId};

use super::agent::AgentConfig;
use super::source::{ConfigErrors, Reader, Strings};

/// Everything the gateway role is told.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Control plane, certificates, logging, endpoints: as for the agent.
    pub base: AgentConfig,
    /// The identity it proves on the outer tunnel.
    pub identity: SpiffeId,
    /// HBONE listener.
    pub hbone: SocketAddr,
    /// TLS passthrough: listeners that route by SNI.
    pub sni: Vec<SniRoute>,
    /// Plain TCP listeners that forward to a service.
    pub tcp: Vec<TcpRoute>,
    /// Kubeconfig of its cluster; `None`: in-cluster.
    pub kubeconfig: Option<PathBuf>,
}

/// One entry of `GATEWAY_SNI_ROUTES`: `<port>=<server name>@<upstream>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniRoute {
    /// Listener port.
    pub port: u16,
    /// The server name, exact.
    pub name: String,
    /// Where it goes: an address, or a service's `hostname:port`.
    pub to: Authority,
}

/// One entry of `GATEWAY_TCP_ROUTES`: `<port>=<upstream>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRoute {
    /// Listener port.
    pub port: u16,
    /// Where it goes: an address, or a service's `hostname:port`.
    pub to: Authority,
}

/// Reads everything.
///
/// # Errors
/// All bad values at once.
pub fn read(strings: &dyn Strings) -> Result<GatewayConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let base = super::agent::read(strings);
    let r = &mut reader;
    let namespace = r.required("POD_NAMESPACE", "the gateway's identity needs its namespace");
    let account = r.required("SERVICE_ACCOUNT", "the gateway's identity needs its service account");
    let trust_domain = r.text("TRUST_DOMAIN").unwrap_or_default();
    let port: u16 = r.parsed("GATEWAY_HBONE_PORT", HBONE_PORT, "a port");
    let sni = entries(r, "GATEWAY_SNI_ROUTES", sni_route);
    let tcp = entries(r, "GATEWAY_TCP_ROUTES", tcp_route);
    let kubeconfig = super::read_kubeconfig(r);
    let identity = SpiffeId::new(trust_domain.as_str().into(), namespace.into(), account.into());
    let hbone = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    match (base, reader.finish(())) {
        (Ok(base), Ok(())) => Ok(GatewayConfig { base, identity, hbone, sni, tcp, kubeconfig }),
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
            None => r.fail(format!("{key}: {entry:?} is not of the form {}", form(key))),
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
    fn routes_are_read() {
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
    fn own_and_shared_mistakes_are_reported_together() {
        let found = read(&env(&[("GATEWAY_SNI_ROUTES", "x"), ("SECRET_TTL", "y")])).unwrap_err().0;
        for key in ["POD_NAMESPACE", "SERVICE_ACCOUNT", "GATEWAY_SNI_ROUTES", "SECRET_TTL", "KUBECONFIG"] {
            assert!(found.iter().any(|line| line.contains(key)), "{key}: {found:?}");
        }
    }
}
