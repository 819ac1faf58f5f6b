//! The API server: which pods run on this node, what their namespaces are labelled, and the one annotation we write.
//! Translates; decides nothing.

use std::path::PathBuf;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use isthmus_model::name::NodeName;
use isthmus_proto::enroll::REDIRECTION;
use isthmus_rt::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, Pod as ApiPod};
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::mesh::{Status, StatusError};
use crate::pod::{Pod, Redirection};
use crate::view::{Event, NamespaceLabels, Watched};

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiServer {
    /// With what Kubernetes gives to every pod.
    InCluster,
    /// As a kubeconfig says.
    Kubeconfig(PathBuf),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// We are not in a pod.
    #[error("API server, in-cluster configuration: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// The kubeconfig is of no use.
    #[error("API server, kubeconfig {path}: {error}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: kube::config::KubeconfigError,
    },
    /// Its TLS settings are of no use.
    #[error("API server: {0}")]
    Client(#[from] kube::Error),
}

/// A client; nothing is asked yet.
///
/// # Errors
/// When the configuration is of no use.
pub async fn connect(server: &ApiServer) -> Result<Client, ConnectError> {
    let config = match server {
        ApiServer::InCluster => kube::Config::incluster()?,
        ApiServer::Kubeconfig(path) => {
            let named = |error| ConnectError::Kubeconfig { path: path.clone(), error };
            let file = Kubeconfig::read_from(path).map_err(named)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(named)?
        }
    };
    Ok(Client::try_from(config)?)
}

/// Every event of both watches, for ever; a watch that breaks is taken up again with growing waits.
pub(crate) fn events(client: &Client, node: &NodeName) -> Pin<Box<dyn Stream<Item = Event> + Send>> {
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods = watcher(Api::<ApiPod>::all(client.clone()), of_node);
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let pods = lasting(pods, "pods").filter_map(|event| async { watched(event, pod).map(Event::Pod) });
    let namespaces = lasting(namespaces, "namespaces")
        .filter_map(|event| async { watched(event, namespace).map(Event::Namespace) });
    Box::pin(futures_util::stream::select(Box::pin(pods), Box::pin(namespaces)))
}

fn lasting<K: Send + 'static>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> impl Stream<Item = watcher::Event<K>> + Send {
    stream
        .default_backoff()
        .inspect_err(move |error| tracing::warn!(error = %error, watch = what, "the watch is taken up again"))
        .filter_map(|event| async move { event.ok() })
}

/// `None` for an object without what every object of an API server has.
fn watched<K, T>(event: watcher::Event<K>, convert: impl Fn(K) -> Option<T>) -> Option<Watched<T>> {
    Some(match event {
        watcher::Event::Init => Watched::Restarted,
        watcher::Event::InitDone => Watched::ListDone,
        watcher::Event::InitApply(object) => Watched::Listed(convert(object)?),
        watcher::Event::Apply(object) => Watched::Applied(convert(object)?),
        watcher::Event::Delete(object) => Watched::Deleted(convert(object)?),
    })
}

fn namespace(namespace: Namespace) -> Option<NamespaceLabels> {
    Some(NamespaceLabels {
        name: namespace.metadata.name?,
        labels: namespace.metadata.labels.unwrap_or_default(),
    })
}

fn pod(pod: ApiPod) -> Option<Pod> {
    let (metadata, spec, status) =
        (pod.metadata, pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let all = status.pod_ips.unwrap_or_default();
    let mut ips: Vec<std::net::IpAddr> = all.iter().filter_map(|entry| entry.ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(status.pod_ip.and_then(|ip| ip.parse::<std::net::IpAddr>().ok()));
    }
    Some(Pod {
        uid: metadata.uid?.into(),
        namespace: metadata.namespace?,
        name: metadata.name?,
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        ips,
        terminated: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        deleting: metadata.deletion_timestamp.is_some(),
    })
}

/// Writes the annotation through the `pods/status` subresource, which needs no right to change pods.
pub(crate) struct Annotations(pub(crate) Client);

impl Status for Annotations {
    fn set<'a>(
        &'a self,
        pod: &'a Pod,
        redirection: Option<Redirection>,
    ) -> BoxFuture<'a, Result<(), StatusError>> {
        Box::pin(async move {
            let api: Api<ApiPod> = Api::namespaced(self.0.clone(), &pod.namespace);
            // The UID makes it a conflict to write on a later pod of the same name.
            let patch = json!({"metadata": {
                "uid": pod.uid.as_str(),
                "annotations": {REDIRECTION: redirection.map(Redirection::as_str)},
            }});
            match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(patched) => {
                    tracing::debug!(pod = %pod, version = ?patched.resource_version(), "annotated");
                    Ok(())
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                Err(error) => Err(StatusError(error.to_string())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_what_the_api_server_says() {
        let object = json!({
            "metadata": {"uid": "u", "name": "n", "namespace": "s", "labels": {"a": "b"},
                         "annotations": {"c": "d"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"serviceAccountName": "sa", "hostNetwork": true, "containers": []},
            "status": {"phase": "Failed", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}]},
        });
        let got = pod(serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!((got.uid.as_str(), got.service_account.as_str()), ("u", "sa"));
        assert_eq!(got.ips.len(), 2);
        assert!(got.host_network && got.terminated && got.deleting);

        let bare =
            json!({"metadata": {"uid": "u", "name": "n", "namespace": "s"}, "status": {"podIP": "10.0.0.6"}});
        let got = pod(serde_json::from_value(bare).unwrap()).unwrap();
        assert_eq!(got.service_account, "default");
        assert_eq!(got.ips, ["10.0.0.6".parse::<std::net::IpAddr>().unwrap()]);
        assert!(!got.host_network && !got.terminated && !got.deleting);

        let nameless = json!({"metadata": {"uid": "u"}});
        assert!(pod(serde_json::from_value(nameless).unwrap()).is_none());
    }
}
