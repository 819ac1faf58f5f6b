//! Builds the clients of the control plane (xDS, CA) from the settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_control::ca::{self, CaClient};
use isthmus_control::channel::{ConfigError, RootSource, Server, TokenSource};
use isthmus_control::xds::{Metadata, Node};
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::schedule::Limits;
use isthmus_identity::{Config, KeyExchange, Manager, SignError, Signer, Trust, system_clock};
use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::Tasks;

use crate::config::agent::{AgentConfig, CaChoice, ControlPlane, LocalInfo, Roots, Token};

/// Deadline of one signing request.
const SIGN_DEADLINE: Duration = Duration::from_secs(10);

/// The client settings of one control plane server.
pub(crate) fn server(plane: &ControlPlane, local_info: &LocalInfo, key_exchange: KeyExchange) -> Server {
    Server {
        address: plane.address.clone(),
        roots: match &plane.roots {
            Roots::File(path) => RootSource::File(path.clone()),
            Roots::Pem(pem) => RootSource::Pem(pem.clone()),
        },
        token: match &plane.token {
            Token::Literal(token) => TokenSource::Literal(token.clone()),
            Token::File(path) => TokenSource::File(path.clone()),
            Token::None => TokenSource::None,
        },
        cluster_id: local_info.cluster.clone(),
        headers: plane.headers.clone().into_iter().collect(),
        alt_hostname: plane.alt_hostname.clone(),
        key_exchange,
    }
}

/// The node that the agent introduces itself as in xDS.
pub(crate) fn node(local_info: &LocalInfo) -> Node {
    let texts = local_info.metadata.iter().map(|(key, value)| (key.clone(), Metadata::Text(value.clone())));
    let json = local_info.json_metadata.iter().map(|(key, value)| (key.clone(), json(value)));
    let mut metadata: BTreeMap<String, Metadata> = texts.chain(json).collect();
    metadata.entry("CLUSTER_ID".to_owned()).or_insert_with(|| Metadata::Text(local_info.cluster.to_string()));
    Node {
        instance_ip: local_info.instance_ip.as_str().into(),
        pod_name: local_info.pod_name.as_str().into(),
        namespace: local_info.pod_namespace.as_str().into(),
        node_name: local_info.node.clone(),
        metadata,
    }
}

/// Text that is not JSON is sent as a string.
fn json(text: &str) -> Metadata {
    serde_json::from_str(text).map_or_else(|_| Metadata::Text(text.to_owned()), Metadata::Json)
}

/// Whose certificates the process asks the CA for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identities {
    /// Those of the node's workloads, on whose behalf a node account may ask.
    OfNode,
    /// The one that its token proves. A CA refuses an account that names an identity and is no node's.
    Own,
}

/// Longest pause between two requests for the only certificate of a process.
const OWN_RETRY: Duration = Duration::from_secs(10);

/// The certificate manager over the configured CA.
pub(crate) fn manager(
    config: &AgentConfig,
    identities: Identities,
    trust: Trust,
    registry: &Registry,
    tasks: &Tasks,
) -> Result<Manager, ConfigError> {
    let signer: Arc<dyn Signer> = match &config.ca {
        CaChoice::Remote(plane) => {
            let server = server(plane, &config.local_info, config.trust.key_exchange);
            let impersonate = identities == Identities::OfNode;
            Arc::new(CaClient::new(ca::Config { server, impersonate, deadline: SIGN_DEADLINE })?)
        }
        CaChoice::Fake => {
            tracing::warn!(
                "FAKE_CA=true: certificates are signed with a published test key, traffic is NOT protected"
            );
            Arc::new(FakeSigner::new())
        }
        CaChoice::None => Arc::new(NoCa),
    };
    let limits = match identities {
        Identities::OfNode => Limits::default(),
        Identities::Own => Limits { last_retry: OWN_RETRY, ..Limits::default() },
    };
    let settings = Config {
        ttl: config.secret_ttl,
        deadline: SIGN_DEADLINE,
        limits,
        check_identity: true,
        clock: system_clock(),
        metrics: isthmus_identity::Metrics::register(registry),
        trust,
    };
    Ok(Manager::new(signer, settings, tasks))
}

/// No CA is configured: every request fails with the reason.
struct NoCa;

impl Signer for NoCa {
    fn sign(&self, _: &SpiffeId, _: String, _: Duration) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        Box::pin(async { Err(SignError::NoCa) })
    }
}
