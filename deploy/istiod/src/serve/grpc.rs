//! The two gRPC services: delta ADS and certificates. They carry calls to the session, the reviewer and the authority.

use std::sync::Arc;
use std::time::SystemTime;

use isthmus_proto::ca::istio_certificate_service_server::IstioCertificateService;
use isthmus_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use isthmus_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use isthmus_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use isthmus_rt::task::Tasks;
use prost_types::value::Kind;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ca::{self, Authority};
use crate::clusters::ClusterId;
use crate::serve::caller::{Account, Caller, Reviewer};
use crate::serve::pushes::PushLog;
use crate::serve::session::{RequestOutcome, Session};
use crate::snapshot::Snapshot;
use crate::translate::view::View;

/// How many responses may wait for a slow client.
const QUEUE: usize = 16;

/// What both services work with.
#[derive(Debug)]
pub(crate) struct ServerState {
    pub(crate) known: watch::Receiver<Arc<Snapshot>>,
    pub(crate) reviewer: Reviewer,
    pub(crate) authority: Authority,
    /// The account of node agents.
    pub(crate) trusted: Account,
    /// What was pushed to each client.
    pub(crate) log: PushLog,
    pub(crate) tasks: Tasks,
}

/// Both services.
#[derive(Debug, Clone)]
pub(crate) struct Services(pub(crate) Arc<ServerState>);

#[tonic::async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.0.reviewer.caller(request.metadata()).await;
        let outcome = caller.and_then(|caller| self.0.sign(&caller, request.get_ref()));
        if let Err(status) = &outcome {
            tracing::warn!(code = ?status.code(), reason = status.message(), "certificate request refused");
        }
        outcome.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Services {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.0.reviewer.caller(request.metadata()).await.inspect_err(|status| {
            tracing::warn!(code = ?status.code(), reason = status.message(), "configuration stream refused");
        })?;
        let (responses, stream) = mpsc::channel(QUEUE);
        let (known, log) = (self.0.known.clone(), self.0.log.clone());
        self.0.tasks.spawn("ads", async move {
            let outcome = drive(caller, request.into_inner(), known, &responses, &log).await;
            if let Err(status) = outcome {
                tracing::debug!(%status, "configuration stream ended");
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

// === impl ServerState ===

impl ServerState {
    fn sign(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let fields = request.metadata.as_ref().map(|metadata| &metadata.fields);
        let asked = fields.and_then(|fields| text(fields.get("ImpersonatedIdentity")));
        let domain = self.known.borrow().trust_domain.clone();
        let own = || format!("spiffe://{domain}/ns/{}/sa/{}", caller.account.namespace, caller.account.name);
        let identity = asked.map_or_else(own, str::to_owned);
        let wanted = Account::from_identity(&identity, &domain).ok_or_else(|| {
            Status::invalid_argument(format!(
                "metadata ImpersonatedIdentity: {identity:?} is not spiffe://{domain}/ns/NAMESPACE/sa/ACCOUNT"
            ))
        })?;
        let may = caller.may_be(&wanted, &self.trusted, &self.known.borrow().clusters);
        may.map_err(|denied| Status::permission_denied(denied.to_string()))?;
        let chain =
            self.authority.sign(&request.csr, &identity, request.validity_duration, SystemTime::now());
        let chain = chain.map_err(|error| match error {
            ca::Error::Request(_) | ca::Error::OtherName(..) | ca::Error::Lifetime(_) => {
                Status::invalid_argument(error.to_string())
            }
            other => Status::internal(other.to_string()),
        })?;
        tracing::info!(identity, cluster = %caller.cluster, "certificate signed");
        Ok(chain)
    }
}

/// Runs one stream until the client leaves.
async fn drive(
    caller: Caller,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    mut known: watch::Receiver<Arc<Snapshot>>,
    responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    log: &PushLog,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else {
        return Ok(());
    };
    let node = first.node.clone().unwrap_or_default();
    let peer = node.id.clone();
    let cluster = metadata(&node, "CLUSTER_ID").map_or_else(|| caller.cluster.clone(), ClusterId);
    if cluster != caller.cluster {
        let problem = format!("node metadata CLUSTER_ID is {cluster}, the token is from {}", caller.cluster);
        return Err(Status::permission_denied(problem));
    }
    let mut session = Session::new(metadata(&node, "NODE_NAME"));
    tracing::info!(peer, %cluster, "configuration stream started");
    let connected = log.connected(&peer, &cluster);
    let mut told = known.borrow().number;
    let mut next = Some(first);
    loop {
        let answers = if let Some(request) = next.take() {
            let current = Arc::clone(&known.borrow());
            let type_url = request.type_url.clone();
            let (outcome, answer) = session.request(request, view(&current, &cluster)?);
            report(&peer, &type_url, &outcome);
            Vec::from_iter(answer)
        } else {
            let current = Arc::clone(&known.borrow_and_update());
            told = current.number;
            session.changed(view(&current, &cluster)?)
        };
        for answer in answers {
            tracing::debug!(
                peer,
                type_url = answer.type_url,
                resources = answer.resources.len(),
                removed = answer.removed_resources.len(),
                nonce = answer.nonce,
                "push"
            );
            if responses.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        connected.told(told, session.unanswered());
        tokio::select! {
            message = requests.message() => match message? {
                Some(request) => next = Some(request),
                None => return Ok(()),
            },
            changed = known.changed() => if changed.is_err() {
                return Err(Status::unavailable("the control plane is stopping"));
            },
        }
    }
}

fn view<'a>(known: &'a Snapshot, cluster: &ClusterId) -> Result<&'a View, Status> {
    let unknown =
        || Status::failed_precondition(format!("cluster {cluster} is not one of this control plane"));
    known.views.get(cluster).ok_or_else(unknown)
}

fn report(peer: &str, type_url: &str, outcome: &RequestOutcome) {
    match outcome {
        RequestOutcome::Subscribed | RequestOutcome::Accepted => {
            tracing::debug!(peer, type_url, ?outcome, "request")
        }
        RequestOutcome::UnknownType => {
            tracing::warn!(peer, type_url, "client requested a resource type that is not served")
        }
        RequestOutcome::Rejected { message, resources } => {
            let resources = resources.join(" ");
            tracing::warn!(peer, type_url, reason = message, resources, "client rejected a push (NACK)");
        }
    }
}

fn metadata(node: &Node, key: &str) -> Option<String> {
    let value = text(node.metadata.as_ref()?.fields.get(key))?;
    (!value.is_empty()).then(|| value.to_owned())
}

fn text(value: Option<&prost_types::Value>) -> Option<&str> {
    match value?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
