//! What the ports of a Gateway carry: its listeners that can be served, with the routes that attached to them.

use std::collections::BTreeMap;

use super::listeners::{Declared, Protocol};
use super::routes::{Attached, Attachments};
use crate::{Listener, Listeners, TlsRoutes};

/// How a TLS listener says that it passes the names of sidecars through.
const PROTOCOL_OPTION: (&str, &str) = ("gateway.istio.io/listener-protocol", "auto-passthrough");

/// What the listeners that can be served carry.
pub(super) fn carried(declared: &[Declared<'_>], attachments: &Attachments<'_>) -> Listeners {
    let mut all: Listeners = BTreeMap::new();
    for one in declared.iter().filter(|one| one.is_valid()) {
        let (port, attached) = (one.spec.port, attachments.of(one));
        match one.protocol {
            Some(Protocol::Hbone) => _ = all.insert(port, Listener::Hbone),
            Some(Protocol::Tcp) => {
                let oldest = attached.first().map(|route| route.backends.to_vec());
                all.insert(port, Listener::Tcp(oldest.unwrap_or_default()));
            }
            Some(Protocol::Tls) => {
                let of_port = all.entry(port).or_insert_with(|| Listener::Tls(TlsRoutes::default()));
                if let Listener::Tls(routes) = of_port {
                    add(routes, one, &attached);
                }
            }
            None => {}
        }
    }
    all
}

/// Adds the routes of one listener to its port's; what is there already came from an older route, and stays.
fn add(routes: &mut TlsRoutes, listener: &Declared<'_>, attached: &[Attached<'_>]) {
    let (option, value) = PROTOCOL_OPTION;
    routes.auto_passthrough |= listener.spec.tls.options.get(option).is_some_and(|asked| asked == value);
    for route in attached {
        for name in route.hostnames {
            let backends = || route.backends.to_vec();
            match name.as_deref().map(|name| (name.strip_prefix("*."), name)) {
                None => _ = routes.otherwise.get_or_insert_with(backends),
                Some((Some(suffix), _)) => {
                    routes.suffixes.entry(suffix.to_owned()).or_insert_with(backends);
                }
                Some((None, exact)) => _ = routes.names.entry(exact.to_owned()).or_insert_with(backends),
            }
        }
    }
}
