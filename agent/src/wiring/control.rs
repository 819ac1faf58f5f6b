//! Settings → clients of the control plane.

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

use crate::config::agent::{AgentConfig, CaChoice, ControlPlane, Place};
use crate::config::{Roots, Token};

/// How long one signing request may take.
const SIGN_DEADLINE: Duration = Duration::from_secs(10);

/// One server of the control plane.
pub(crate) fn server(plane: &ControlPlane, place: &Place, key_exchange: KeyExchange) -> Server {
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
        cluster_id: place.cluster.clone(),
        headers: plane.headers.clone().into_iter().collect(),
        alt_hostname: plane.alt_hostname.clone(),
        key_exchange,
    }
}

/// Who we say we are.
pub(crate) fn node(place: &Place) -> Node {
    let texts = place.metadata.iter().map(|(key, value)| (key.clone(), Metadata::Text(value.clone())));
    let json = place.json_metadata.iter().map(|(key, value)| (key.clone(), json(value)));
    let mut metadata: BTreeMap<String, Metadata> = texts.chain(json).collect();
    metadata.entry("CLUSTER_ID".to_owned()).or_insert_with(|| Metadata::Text(place.cluster.to_string()));
    Node {
        instance_ip: place.instance_ip.as_str().into(),
        pod_name: place.pod_name.as_str().into(),
        namespace: place.pod_namespace.as_str().into(),
        node_name: place.node.clone(),
        metadata,
    }
}

/// What is not JSON after all is sent as the text it is.
fn json(text: &str) -> Metadata {
    serde_json::from_str(text).map_or_else(|_| Metadata::Text(text.to_owned()), Metadata::Json)
}

/// The certificate manager over whoever signs.
pub(crate) fn manager(
    config: &AgentConfig,
    trust: Trust,
    registry: &Registry,
    tasks: &Tasks,
) -> Result<Manager, ConfigError> {
    let signer: Arc<dyn Signer> = match &config.ca {
        CaChoice::Remote(plane) => {
            let server = server(plane, &config.place, config.trust.key_exchange);
            Arc::new(CaClient::new(ca::Config { server, impersonate: true, deadline: SIGN_DEADLINE })?)
        }
        CaChoice::Fake => {
            tracing::warn!(
                "FAKE_CA is on: certificates are signed with a key that everybody knows. Traffic is NOT protected"
            );
            Arc::new(FakeSigner::new())
        }
        CaChoice::None => Arc::new(Nobody),
    };
    let settings = Config {
        ttl: config.secret_ttl,
        deadline: SIGN_DEADLINE,
        limits: Limits::default(),
        check_identity: true,
        clock: system_clock(),
        metrics: isthmus_identity::Metrics::register(registry),
        trust,
    };
    Ok(Manager::new(signer, settings, tasks))
}

/// There is no CA: whoever needs a certificate is told so.
struct Nobody;

impl Signer for Nobody {
    fn sign(&self, _: &SpiffeId, _: String, _: Duration) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        Box::pin(async {
            Err(SignError::Request("CA_ADDRESS is empty: nobody signs certificates".to_owned()))
        })
    }
}
