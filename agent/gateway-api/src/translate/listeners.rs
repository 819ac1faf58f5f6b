//! The listeners that a Gateway declares: which of them can be served, and their conditions.

use serde_json::{Value, json};

use crate::Settings;
use crate::kinds::{GROUP, Kind};
use crate::objects::ListenerSpec;
use crate::status::{Condition, Observed, merged};

/// How an HBONE listener says whose certificates terminate it.
const TERMINATE_OPTION: (&str, &str) = ("gateway.istio.io/tls-terminate-mode", "ISTIO_MUTUAL");

/// What a listener's protocol means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Hbone,
    Tls,
    Tcp,
}

/// A listener and whether it can be served.
#[derive(Debug)]
pub(crate) struct Declared<'a> {
    pub(super) spec: &'a ListenerSpec,
    /// `None` when the protocol is not supported.
    pub(super) protocol: Option<Protocol>,
    refused: Option<Refused>,
    /// Kinds of routes that are asked for and do not fit the protocol.
    invalid_kinds: bool,
}

/// Why a listener is not served: the condition that says so, its reason and message.
#[derive(Debug)]
struct Refused {
    conflict: bool,
    reason: &'static str,
    message: String,
}

/// Judges each listener. Of listeners that conflict, the first one is served.
pub(super) fn declared<'a>(listeners: &'a [ListenerSpec], settings: &Settings) -> Vec<Declared<'a>> {
    let mut all: Vec<Declared<'a>> = Vec::new();
    for spec in listeners {
        let judged = protocol(spec);
        let refused = match &judged {
            Err(message) => Some(Refused::new("UnsupportedProtocol", message.clone())),
            Ok(_) if settings.reserved_ports.contains(&spec.port) => {
                Some(Refused::new("PortUnavailable", format!("port {} is the gateway's own", spec.port)))
            }
            Ok(protocol) => conflict(&all, spec, *protocol),
        };
        let protocol = judged.ok();
        let fits = |kind: &crate::objects::GroupKind| {
            let supported = protocol.and_then(Protocol::route);
            supported.is_some_and(|kind_of| kind.kind == kind_of.name())
                && kind.group.as_deref().unwrap_or(GROUP) == GROUP
        };
        let invalid_kinds = protocol.is_some() && !spec.allowed_routes.kinds.iter().all(fits);
        all.push(Declared { spec, protocol, refused, invalid_kinds });
    }
    all
}

fn protocol(spec: &ListenerSpec) -> Result<Protocol, String> {
    let mode = spec.tls.mode.as_deref();
    match spec.protocol.as_str() {
        "HBONE" => {
            let (option, supported) = TERMINATE_OPTION;
            let asked = spec.tls.options.get(option).map_or(supported, String::as_str);
            match mode {
                Some("Terminate") | None if asked == supported => Ok(Protocol::Hbone),
                Some("Terminate") | None => {
                    Err(format!("{option} {asked:?} is not supported, only {supported:?}"))
                }
                Some(mode) => Err(format!("HBONE with tls.mode {mode} is not supported, only Terminate")),
            }
        }
        "TLS" if mode == Some("Passthrough") => Ok(Protocol::Tls),
        "TLS" => Err("TLS is passed through only: tls.mode must be Passthrough".to_owned()),
        "TCP" => Ok(Protocol::Tcp),
        other => Err(format!("protocol {other} is not supported: HBONE, TLS and TCP are")),
    }
}

fn conflict(before: &[Declared<'_>], spec: &ListenerSpec, protocol: Protocol) -> Option<Refused> {
    let served = before.iter().filter(|one| one.is_valid() && one.spec.port == spec.port);
    for other in served {
        let name = &other.spec.name;
        if other.protocol != Some(protocol) {
            let message = format!("listener {name} has port {} with another protocol", spec.port);
            return Some(Refused { conflict: true, reason: "ProtocolConflict", message });
        }
        // Only TLS has names to tell listeners of one port apart.
        if protocol != Protocol::Tls || hostname(other.spec) == hostname(spec) {
            let message = format!("listener {name} has port {} and the same hostname", spec.port);
            return Some(Refused { conflict: true, reason: "HostnameConflict", message });
        }
    }
    None
}

/// A listener's hostname in lower case.
pub(super) fn hostname(spec: &ListenerSpec) -> Option<String> {
    spec.hostname.as_deref().filter(|name| !name.is_empty()).map(str::to_ascii_lowercase)
}

impl Refused {
    fn new(reason: &'static str, message: String) -> Self {
        Self { conflict: false, reason, message }
    }
}

impl Protocol {
    /// The routes that attach to listeners of this protocol.
    pub(super) fn route(self) -> Option<Kind> {
        match self {
            Self::Hbone => None,
            Self::Tls => Some(Kind::TlsRoute),
            Self::Tcp => Some(Kind::TcpRoute),
        }
    }
}

impl Declared<'_> {
    /// Whether it is served.
    pub(super) fn is_valid(&self) -> bool {
        self.refused.is_none()
    }

    pub(super) fn is_hbone(&self) -> bool {
        self.is_valid() && self.protocol == Some(Protocol::Hbone)
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Why it is not served, for the log.
    pub(super) fn problem(&self) -> Option<String> {
        self.refused.as_ref().map(|why| format!("listener {} is not served: {}", self.name(), why.message))
    }

    /// The listener's entry in the Gateway's status.
    pub(super) fn status(&self, attached: usize, stored: Option<&Value>, observed: Observed<'_>) -> Value {
        let kinds =
            self.protocol.and_then(Protocol::route).map(|kind| json!({"group": GROUP, "kind": kind.name()}));
        json!({
            "name": self.spec.name,
            "supportedKinds": kinds.into_iter().collect::<Vec<_>>(),
            "attachedRoutes": attached,
            "conditions": merged(stored.and_then(|stored| stored.get("conditions")), &self.conditions(), observed),
        })
    }

    fn conditions(&self) -> [Condition; 4] {
        let [accepted, conflicted, programmed] = match &self.refused {
            None => [
                Condition::is_true("Accepted", "Accepted"),
                Condition::is_false("Conflicted", "NoConflicts", ""),
                Condition::is_true("Programmed", "Programmed"),
            ],
            Some(Refused { conflict, reason, message }) => [
                Condition::is_false("Accepted", reason, message),
                if *conflict {
                    Condition::is_true("Conflicted", reason).saying(message)
                } else {
                    Condition::is_false("Conflicted", "NoConflicts", "")
                },
                Condition::is_false("Programmed", "Invalid", message),
            ],
        };
        let resolved = if self.invalid_kinds {
            Condition::is_false(
                "ResolvedRefs",
                "InvalidRouteKinds",
                "allowedRoutes.kinds names kinds that do not fit",
            )
        } else {
            Condition::is_true("ResolvedRefs", "ResolvedRefs")
        };
        [accepted, conflicted, programmed, resolved]
    }
}
