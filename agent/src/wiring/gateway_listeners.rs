//! Keeps the gateway's listeners as its Gateway object declares them, over the proxy's gateway. A listener that stays the
//! same is not touched, one with other routes keeps its connections, and one that is gone drains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_gateway_api::{Backend, Listener, Listeners, TlsRoutes};
use isthmus_proxy::BoundListener;
use isthmus_proxy::gateway::{Backends, Gateway, SniRoutes, Traffic};
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_rt::threads::Threads;
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::sync::watch;

/// Pause before a port is bound again that was in use.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// What every port carries.
type Ports = BTreeMap<u16, Traffic>;

/// What the settings say of the listeners.
#[derive(Debug, Clone, Default)]
pub(crate) struct FixedListeners {
    /// There whatever the Gateway declares.
    pub(crate) always: Ports,
    /// There as long as there is no Gateway.
    pub(crate) without_gateway: Ports,
}

/// Opens and closes listeners.
pub(crate) struct ListenerKeeper {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) fixed: FixedListeners,
    pub(crate) sockets: Sockets,
    pub(crate) threads: Threads,
    pub(crate) tasks: Tasks,
    /// How long connections of a listener that is gone may last.
    pub(crate) drain: Duration,
}

impl FixedListeners {
    /// What is to be open. A port of the settings is theirs.
    fn with(&self, declared: Option<&Listeners>) -> Ports {
        let mut all = match declared {
            None => self.without_gateway.clone(),
            Some(declared) => declared.iter().map(|(port, listener)| (*port, traffic(listener))).collect(),
        };
        all.extend(self.always.iter().map(|(port, traffic)| (*port, traffic.clone())));
        all
    }
}

impl ListenerKeeper {
    /// Opens every listener of the settings.
    ///
    /// # Errors
    /// When one cannot be bound.
    pub(crate) fn open_fixed(&self, watch: &Watch) -> Result<(), isthmus_sys::Error> {
        for (port, traffic) in self.fixed.with(None) {
            self.open(port, traffic, watch)?;
        }
        Ok(())
    }

    /// Follows what the Gateway declares until the drain begins.
    pub(crate) async fn follow(self, mut declared: watch::Receiver<Option<Listeners>>, watch: Watch) {
        let mut failed = BTreeMap::new();
        loop {
            let wanted = self.fixed.with(declared.borrow_and_update().as_ref());
            failed = self.apply(wanted, &watch, &failed);
            tokio::select! {
                changed = declared.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(BIND_AGAIN), if !failed.is_empty() => {}
                () = watch.graceful() => return,
            }
        }
    }

    /// Makes the open listeners those that are wanted. Returns the ports that could not be bound, and why; what `before`
    /// says already is not logged again.
    fn apply(&self, wanted: Ports, watch: &Watch, before: &BTreeMap<u16, String>) -> BTreeMap<u16, String> {
        let open = self.gateway.listeners();
        for port in open.keys().filter(|port| !wanted.contains_key(port)) {
            self.close(*port);
        }
        let mut failed = BTreeMap::new();
        for (port, traffic) in wanted {
            if open.get(&port) == Some(&traffic) {
                continue;
            }
            if self.gateway.reroute(port, &traffic) {
                tracing::info!(port, "listener has other routes: they count for new connections");
                continue;
            }
            self.close(port);
            if let Err(error) = self.open(port, traffic, watch) {
                let error = error.to_string();
                if before.get(&port) != Some(&error) {
                    tracing::warn!(port, error, "listener of the Gateway not opened, trying again");
                }
                failed.insert(port, error);
            }
        }
        failed
    }

    fn open(&self, port: u16, traffic: Traffic, watch: &Watch) -> Result<(), isthmus_sys::Error> {
        let _inside = self.threads.enter(self.threads.next());
        let bound = BoundListener::wildcard(&self.sockets, port, Transparent::Never)?;
        self.gateway.open(bound, traffic, watch.clone());
        tracing::info!(port, "listener opened");
        Ok(())
    }

    fn close(&self, port: u16) {
        if let Some(closed) = self.gateway.close(port, self.drain) {
            tracing::info!(port, deadline = ?self.drain, "listener closed, its connections may end until the deadline");
            self.tasks.spawn("closing listener", closed);
        }
    }
}

fn traffic(listener: &Listener) -> Traffic {
    match listener {
        Listener::Hbone => Traffic::Hbone,
        Listener::Tls(routes) => Traffic::Tls(sni_routes(routes)),
        Listener::Tcp(all) => Traffic::Tcp(backends(all)),
    }
}

fn sni_routes(routes: &TlsRoutes) -> SniRoutes {
    let TlsRoutes { names, suffixes, otherwise, auto_passthrough } = routes;
    let by_name = |all: &BTreeMap<String, Vec<Backend>>| {
        all.iter().map(|(name, of)| (name.clone(), backends(of))).collect()
    };
    SniRoutes {
        names: by_name(names),
        suffixes: by_name(suffixes),
        otherwise: otherwise.as_deref().map(backends),
        auto_passthrough: *auto_passthrough,
    }
}

fn backends(all: &[Backend]) -> Backends {
    Backends::weighted(all.iter().map(|backend| (backend.target.clone(), backend.weight)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_gateway_share_the_ports() {
        let tcp = |to: &str| Traffic::Tcp(Backends::from(to.parse::<isthmus_model::Authority>().unwrap()));
        let fixed = FixedListeners {
            always: [(9000, tcp("a:1"))].into(),
            without_gateway: [(15008, Traffic::Hbone)].into(),
        };
        let ports = |declared: Option<&Listeners>| fixed.with(declared).into_keys().collect::<Vec<_>>();
        assert_eq!(ports(None), [9000, 15008]);
        assert_eq!(ports(Some(&Listeners::new())), [9000]);
        let declared = Listeners::from([(9000, Listener::Tcp(Vec::new())), (15443, Listener::Hbone)]);
        assert_eq!(ports(Some(&declared)), [9000, 15443]);
        assert_eq!(fixed.with(Some(&declared))[&9000], tcp("a:1"), "a port of the settings is theirs");
    }
}
