//! Routes of the listeners that carry no HBONE: which upstream a server name, or a port, leads to. Pure.

use std::collections::HashMap;

use isthmus_model::{Authority, Hostname};

/// Where a connection that is not HBONE is forwarded to: an address, or a port of a service. The service need not be
/// global: the operator configured the route on purpose.
pub type Target = Authority;

/// The upstreams of one route, chosen by weight for each connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backends(Vec<(Option<Target>, u32)>);

/// Routes by the server name of a TLS ClientHello. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SniRoutes {
    /// Upstreams by server name.
    pub names: HashMap<String, Backends>,
    /// Upstreams of every name that ends with a dot and this one, which has at least one more label. The longest suffix
    /// counts.
    pub suffixes: HashMap<String, Backends>,
    /// Upstreams of any other server name, and of clients that send none.
    pub otherwise: Option<Backends>,
    /// Whether a name such as `outbound_.80_._.hello.sample.svc.cluster.local`, which sidecars of other networks send,
    /// leads to that port of that service when it is global.
    pub auto_passthrough: bool,
}

// === impl Backends ===

impl Backends {
    /// Upstreams with their weights. A connection that the weights give to `None` is refused: its share belongs to a
    /// backend that cannot be used.
    #[must_use]
    pub fn weighted(backends: Vec<(Option<Target>, u32)>) -> Self {
        Self(backends)
    }

    /// The upstream for one connection; `None` when it is to be refused.
    pub(super) fn pick(&self, rng: &mut fastrand::Rng) -> Option<&Target> {
        if let [(target, 1..)] = self.0.as_slice() {
            return target.as_ref();
        }
        let total: u64 = self.0.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = if total == 0 { return None } else { rng.u64(..total) };
        for (target, weight) in &self.0 {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return target.as_ref(),
            }
        }
        None
    }
}

impl From<Target> for Backends {
    fn from(target: Target) -> Self {
        Self(vec![(Some(target), 1)])
    }
}

// === impl SniRoutes ===

impl SniRoutes {
    /// The upstreams of a connection with this server name.
    #[must_use]
    pub fn backends(&self, name: Option<&str>) -> Option<&Backends> {
        let name = name.map(str::to_ascii_lowercase);
        let found = name.as_deref().and_then(|name| self.names.get(name).or_else(|| self.by_suffix(name)));
        found.or(self.otherwise.as_ref())
    }

    /// The service and port of a sidecar's server name, on listeners that pass those through.
    #[must_use]
    pub fn auto_passthrough(&self, name: Option<&str>) -> Option<(Hostname, u16)> {
        let rest = name.filter(|_| self.auto_passthrough)?.strip_prefix("outbound_.")?;
        let (port, rest) = rest.split_once("_.")?;
        let (_subset, hostname) = rest.split_once("_.")?;
        (!hostname.is_empty()).then_some(())?;
        Some((hostname.to_ascii_lowercase().into(), port.parse().ok()?))
    }

    fn by_suffix(&self, name: &str) -> Option<&Backends> {
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(found) = self.suffixes.get(suffix) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn the_most_specific_name_decides() {
        let routes = SniRoutes {
            names: HashMap::from([("a.example.com".to_owned(), to("a:1").into())]),
            suffixes: HashMap::from([
                ("example.com".to_owned(), to("b:1").into()),
                ("x.example.com".to_owned(), to("c:1").into()),
            ]),
            otherwise: None,
            auto_passthrough: false,
        };
        for (name, want) in [
            (Some("A.example.com"), Some("a:1")),
            (Some("b.example.com"), Some("b:1")),
            (Some("y.x.example.com"), Some("c:1")),
            (Some("x.example.com"), Some("b:1")),
            (Some("example.com"), None),
            (Some("notexample.com"), None),
            (None, None),
        ] {
            assert_eq!(routes.backends(name), want.map(|want| to(want).into()).as_ref(), "{name:?}");
        }
        let open = SniRoutes { otherwise: Some(to("d:1").into()), ..routes };
        assert_eq!(open.backends(None), Some(&to("d:1").into()));
        assert_eq!(open.backends(Some("a.example.com")), Some(&to("a:1").into()));
    }

    #[test]
    fn weights_divide_the_connections() {
        let mut rng = fastrand::Rng::with_seed(7);
        let backends = Backends::weighted(vec![(Some(to("a:1")), 1), (None, 1), (Some(to("b:1")), 2)]);
        let mut count = [0_u32; 3];
        for _ in 0..4000 {
            match backends.pick(&mut rng).map(ToString::to_string).as_deref() {
                Some("a:1") => count[0] += 1,
                None => count[1] += 1,
                _ => count[2] += 1,
            }
        }
        assert!(count[0].abs_diff(1000) < 150 && count[1].abs_diff(1000) < 150, "{count:?}");
        let none = [Backends::default(), Backends::weighted(vec![(Some(to("a:1")), 0)])];
        assert!(none.iter().all(|backends| backends.pick(&mut rng).is_none()));
    }

    #[test]
    fn a_sidecars_name_is_a_service_and_a_port() {
        let routes = SniRoutes { auto_passthrough: true, ..SniRoutes::default() };
        let parsed = |name: &str| routes.auto_passthrough(Some(name));
        let hello = "hello.sample.svc.cluster.local";
        assert_eq!(parsed(&format!("outbound_.80_._.{hello}")), Some((hello.into(), 80)));
        assert_eq!(parsed(&format!("outbound_.80_.v1_.{hello}")), Some((hello.into(), 80)));
        for other in ["hello.sample", "outbound_.x_._.a", "outbound_.80_._.", "inbound_.80_._.a"] {
            assert_eq!(parsed(other), None, "{other}");
        }
        assert_eq!(SniRoutes::default().auto_passthrough(Some("outbound_.80_._.a")), None);
    }
}
