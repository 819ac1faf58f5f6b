//! The Kubernetes API client: watches the pods of this node and all namespaces, and writes the redirection annotation.
//! It translates objects; it must not know what is done with them.

use std::path::PathBuf;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use isthmus_model::{NodeName, PodRef};
use isthmus_proto::enroll::REDIRECTION;
use isthmus_rt::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod as ApiPod};
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::enroller::annotation::{AnnotationError, RedirectionAnnotation};
use crate::object_cache::{NamespaceLabels, ObjectEvent, WatchEvent};
use crate::pod::{Pod, Redirection};

mod probe_ports;

/// The name under which events are reported.
const REPORTER: &str = "isthmus-node";
/// Deadline of an event.
const EVENT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiServer {
    /// With the service account that Kubernetes mounts into every pod.
    InCluster,
    /// With a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why no client could be made. The configuration's fault: retrying does not help.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The process does not run in a pod, or the pod mounts no service account token.
    #[error("API server, in-cluster configuration: {0} (outside of a pod, set KUBECONFIG)")]
    InCluster(#[from] kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("API server, kubeconfig {path}: {error}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: kube::config::KubeconfigError,
    },
    /// The TLS settings cannot be used.
    #[error("API server: {0}")]
    Client(#[from] kube::Error),
}

/// Makes a client without connecting.
///
/// # Errors
/// When the configuration cannot be used.
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

/// The events of both watches, for ever; a broken watch is restarted with backoff.
pub(crate) fn events(client: &Client, node: &NodeName) -> Pin<Box<dyn Stream<Item = ObjectEvent> + Send>> {
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let pods = watcher(Api::<ApiPod>::all(client.clone()), of_node);
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let pods =
        restarting(pods, "pods").filter_map(|event| async { watched(event, pod).map(ObjectEvent::Pod) });
    let namespaces = restarting(namespaces, "namespaces")
        .filter_map(|event| async { watched(event, namespace).map(ObjectEvent::Namespace) });
    Box::pin(futures_util::stream::select(Box::pin(pods), Box::pin(namespaces)))
}

fn restarting<K: Send + 'static>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> impl Stream<Item = watcher::Event<K>> + Send {
    stream
        .default_backoff()
        .inspect_err(move |error| tracing::warn!(%error, watch = what, "watch of the API server broken, restarting it"))
        .filter_map(|event| async move { event.ok() })
}

/// `None` for an object that lacks the metadata that every object has.
fn watched<K, T>(event: watcher::Event<K>, convert: impl Fn(K) -> Option<T>) -> Option<WatchEvent<T>> {
    Some(match event {
        watcher::Event::Init => WatchEvent::Init,
        watcher::Event::InitDone => WatchEvent::InitDone,
        watcher::Event::InitApply(object) => WatchEvent::InitApply(convert(object)?),
        watcher::Event::Apply(object) => WatchEvent::Apply(convert(object)?),
        watcher::Event::Delete(object) => WatchEvent::Delete(convert(object)?),
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
    let probe_ports = probe_ports::of(&spec);
    let containers =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
            .into_iter()
            .flat_map(|statuses| statuses.iter().flatten())
            // `cri-o://<id>`
            .filter_map(|container| Some(container.container_id.as_ref()?.rsplit_once("://")?.1.to_owned()))
            .collect();
    let all = status.pod_ips.unwrap_or_default();
    let mut ips: Vec<std::net::IpAddr> = all.iter().filter_map(|entry| entry.ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(status.pod_ip.and_then(|ip| ip.parse::<std::net::IpAddr>().ok()));
    }
    Some(Pod {
        pod: PodRef {
            uid: metadata.uid?.into(),
            namespace: metadata.namespace?.into(),
            name: metadata.name?.into(),
            service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()).into(),
        },
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        runtime_class: spec.runtime_class_name,
        probe_ports,
        containers,
        ips,
        terminated: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        deleting: metadata.deletion_timestamp.is_some(),
    })
}

/// Writes the annotation through the `pods/status` subresource, so that the node role needs no permission to change
/// pods.
pub(crate) struct AnnotationClient(pub(crate) Client);

impl RedirectionAnnotation for AnnotationClient {
    fn set<'a>(
        &'a self,
        pod: &'a Pod,
        redirection: Option<Redirection>,
    ) -> BoxFuture<'a, Result<(), AnnotationError>> {
        Box::pin(async move {
            let api: Api<ApiPod> = Api::namespaced(self.0.clone(), pod.pod.namespace.as_str());
            // With the UID in the patch, a later pod of the same name is a conflict and stays untouched.
            let patch = json!({"metadata": {
                "uid": pod.pod.uid.as_str(),
                "annotations": {REDIRECTION: redirection.map(Redirection::as_str)},
            }});
            match api.patch_status(pod.pod.name.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await
            {
                Ok(patched) => {
                    tracing::debug!(resource_version = ?patched.resource_version(), "pod annotated");
                    Ok(())
                }
                // Not found, or a conflict with a later pod of the name: the pod is gone.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                Err(error) => Err(AnnotationError::Api(error.into())),
            }
        })
    }

    fn report_not_captured<'a>(&'a self, pod: &'a PodRef, why: String) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let reporter = Reporter { controller: REPORTER.to_owned(), instance: None };
            let object = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name.to_string()),
                namespace: Some(pod.namespace.to_string()),
                uid: Some(pod.uid.to_string()),
                ..ObjectReference::default()
            };
            let event = Event {
                type_: EventType::Warning,
                reason: "NotCaptured".to_owned(),
                note: Some(why),
                action: "Capture".to_owned(),
                secondary: None,
            };
            let recorder = Recorder::new(self.0.clone(), reporter);
            let written = tokio::time::timeout(EVENT_TIMEOUT, recorder.publish(&event, &object)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!(%pod, ?written, "event of a pod not written (the node role needs `create` on `events`)");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_object_is_converted() {
        let object = json!({
            "metadata": {"uid": "u", "name": "n", "namespace": "s", "labels": {"a": "b"},
                         "annotations": {"c": "d"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"serviceAccountName": "sa", "hostNetwork": true, "containers": []},
            "status": {"phase": "Failed", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}],
                       "containerStatuses": [
                           {"name": "a", "containerID": "cri-o://c1", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                           {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0}]},
        });
        let got = pod(serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!((got.pod.uid.as_str(), got.pod.service_account.as_str()), ("u", "sa"));
        assert_eq!(got.ips.len(), 2);
        assert!(got.host_network && got.terminated && got.deleting);
        assert_eq!(got.containers, ["c1"]);

        let bare =
            json!({"metadata": {"uid": "u", "name": "n", "namespace": "s"}, "status": {"podIP": "10.0.0.6"}});
        let got = pod(serde_json::from_value(bare).unwrap()).unwrap();
        assert_eq!(got.pod.service_account.as_str(), "default");
        assert_eq!(got.ips, ["10.0.0.6".parse::<std::net::IpAddr>().unwrap()]);
        assert!(!got.host_network && !got.terminated && !got.deleting);

        let nameless = json!({"metadata": {"uid": "u"}});
        assert!(pod(serde_json::from_value(nameless).unwrap()).is_none());
    }
}
