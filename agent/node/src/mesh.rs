//! Puts pods into the mesh and takes them out, step by step in the one order that never leaks plaintext: rules first, then
//! the data plane, then probes, and the annotation that tells the world last. Owns what was done for each pod; when and
//! whether is decided elsewhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_model::name::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;
use tokio::time::Instant;

use crate::kernel::{Kernel, KernelError, Probe};
use crate::netns_find::Wanted;
use crate::plan::{Leaving, Standing};
use crate::pod::{Capture, Pod, Redirection};
use crate::zds::{AgentError, AgentPod, Agents};

/// Longest wait for the data plane and for the API server, each, when no plugin waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for each of them while a failed enrolment is undone: the plugin is still to hear the reason.
const UNDO_PATIENCE: Duration = Duration::from_millis(300);

/// Writes the annotation that says how far a pod's redirection has come.
pub trait Status: Send + Sync + 'static {
    /// Sets or removes it. A pod that no longer exists is success: there is nobody to tell.
    fn set<'a>(
        &'a self,
        pod: &'a Pod,
        redirection: Option<Redirection>,
    ) -> BoxFuture<'a, Result<(), StatusError>>;
}

/// Why the annotation is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation ambient.istio.io/redirection: {0}")]
pub struct StatusError(pub String);

/// Why a pod is not in the mesh.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The kernel, or what we know of it.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its namespace was not found.
    #[error("no network namespace owns its address {0:?}")]
    NoNetns(Vec<IpAddr>),
    /// The plugin named no address.
    #[error("the event names no address")]
    NoAddress,
    /// The data plane.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The API server.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// What was done for a pod.
#[derive(Debug, Clone)]
struct Held {
    standing: Standing,
    netns: Option<Netns>,
    ips: Vec<IpAddr>,
}

/// The pods that are in the mesh or on their way, and the three things that put them there.
pub struct Mesh {
    kernel: Arc<dyn Kernel>,
    agents: Arc<dyn Agents>,
    status: Arc<dyn Status>,
    dns_capture: bool,
    ipv6: bool,
    held: Mutex<HashMap<PodUid, Held>>,
}

impl Mesh {
    /// Nothing is in the mesh yet.
    #[must_use]
    pub fn new(
        kernel: Arc<dyn Kernel>,
        agents: Arc<dyn Agents>,
        status: Arc<dyn Status>,
        dns_capture: bool,
        ipv6: bool,
    ) -> Self {
        Self { kernel, agents, status, dns_capture, ipv6, held: Mutex::default() }
    }

    /// What was done for a pod so far, and the addresses it was done for.
    #[must_use]
    pub fn standing(&self, uid: &PodUid) -> (Standing, Vec<IpAddr>) {
        self.lock().get(uid).map_or((Standing::Out, Vec::new()), |held| (held.standing, held.ips.clone()))
    }

    /// Pods that are on their way.
    #[must_use]
    pub fn unfinished(&self) -> Vec<PodUid> {
        let held = self.lock();
        held.iter()
            .filter(|(_, held)| held.standing == Standing::Partial)
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// Every pod that something was done for.
    #[must_use]
    pub fn known(&self) -> Vec<PodUid> {
        self.lock().keys().cloned().collect()
    }

    /// Enrols a pod whose sandbox was just made. All or nothing: on an error nothing of it is left.
    ///
    /// # Errors
    /// With the step that failed. `deadline` bounds the data plane and the API server.
    pub async fn add(
        &self,
        pod: &Pod,
        path: &Path,
        ips: &[IpAddr],
        deadline: Instant,
    ) -> Result<(), EnrolError> {
        if ips.is_empty() {
            return Err(EnrolError::NoAddress);
        }
        let path = path.to_owned();
        let netns = self.blocking(move |kernel| kernel.open(&path)).await?;
        // An earlier sandbox of this pod is gone, and its addresses may be another pod's.
        let (_, stale) = self.standing(&pod.uid);
        self.drop_probes(&pod.uid, stale.into_iter().filter(|ip| !ips.contains(ip)).collect()).await?;
        let result = self.steps(pod, &netns, ips, deadline).await;
        if let Err(error) = &result {
            let annotated = matches!(error, EnrolError::Status(_));
            self.roll_back(pod, &netns, ips, annotated).await;
        }
        result
    }

    /// Takes back an [`add`](Self::add) that nobody waits for any more.
    pub async fn undo_add(&self, pod: &Pod) {
        let Some(held) = self.lock().get(&pod.uid).cloned() else { return };
        if let Some(netns) = held.netns {
            self.roll_back(pod, &netns, &held.ips, true).await;
        }
    }

    /// Enrols a running pod. On an error what is done stays, so that the pod is closed and not leaking, and the pod is
    /// marked as pending.
    ///
    /// # Errors
    /// With the step that failed; all are worth another try.
    pub async fn enrol(&self, pod: &Pod) -> Result<(), EnrolError> {
        let netns = self.netns_of(pod).await?;
        let result = self.steps(pod, &netns, &pod.ips, Instant::now() + PATIENCE).await;
        if result.is_err()
            && let Err(error) =
                self.set_status(pod, Some(Redirection::Pending), Instant::now() + PATIENCE).await
        {
            tracing::warn!(pod = %pod, error = %error, "the pod is not marked as pending");
        }
        result
    }

    /// Takes a pod out of the mesh; `pod` is `None` when it is deleted.
    ///
    /// # Errors
    /// With the step that failed; what is left is known, so that another try goes on from there.
    pub async fn withdraw(
        &self,
        uid: &PodUid,
        pod: Option<&Pod>,
        leaving: Leaving,
    ) -> Result<(), EnrolError> {
        let Some(held) = self.lock().get_mut(uid).map(|held| {
            // Should it be wanted again before this is through, it must be enrolled anew.
            held.standing = Standing::Partial;
            held.clone()
        }) else {
            return Ok(());
        };
        self.drop_probes(uid, held.ips.clone()).await?;
        if let (Leaving::Live, Some(pod)) = (leaving, pod) {
            let netns = match held.netns {
                Some(netns) => Some(netns),
                None => self.search(pod).await?,
            };
            // Without any namespace there is nothing left that could have rules.
            if let Some(netns) = netns {
                self.blocking(move |kernel| kernel.remove_pod(&netns)).await?;
            }
        }
        self.agents.del(uid).await;
        self.lock().remove(uid);
        match pod {
            Some(pod) => Ok(self.set_status(pod, None, Instant::now() + PATIENCE).await?),
            None => Ok(()),
        }
    }

    /// Removes an annotation that is not true any more.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub async fn clear_annotation(&self, pod: &Pod) -> Result<(), EnrolError> {
        Ok(self.set_status(pod, None, Instant::now() + PATIENCE).await?)
    }

    /// Follows a pod's changed addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn sync_probes(&self, pod: &Pod) -> Result<(), EnrolError> {
        let (_, old) = self.standing(&pod.uid);
        self.add_probes(&pod.uid, &pod.ips).await?;
        self.drop_probes(&pod.uid, old.into_iter().filter(|ip| !pod.ips.contains(ip)).collect()).await?;
        if let Some(held) = self.lock().get_mut(&pod.uid) {
            held.ips.clone_from(&pod.ips);
        }
        Ok(())
    }

    /// Takes over the pods that an earlier run has enrolled. Nothing here stops the start: what fails is tried again
    /// with the pod.
    pub async fn adopt(&self, pods: &[Pod], reconcile: bool) {
        let wanted =
            pods.iter().map(|pod| Wanted { uid: pod.uid.clone(), ips: pod.ips.clone() }).collect::<Vec<_>>();
        let found = self.blocking(move |kernel| kernel.find(&wanted)).await.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "no network namespace of a running pod is known");
            HashMap::new()
        });
        for pod in pods {
            let netns = found.get(&pod.uid).cloned();
            let mut standing = match (pod.redirection(), &netns) {
                (Some(Redirection::Enabled), Some(_)) => Standing::In,
                _ => Standing::Partial,
            };
            if let Some(netns) = netns.clone().filter(|_| reconcile) {
                let capture = self.capture(pod);
                if let Err(error) = self.blocking(move |kernel| kernel.apply_pod(&netns, &capture)).await {
                    tracing::warn!(pod = %pod, error = %error, "its rules could not be written again");
                    standing = Standing::Partial;
                }
            }
            self.agents.adopt(&AgentPod::of(pod), netns.clone());
            self.hold(pod, standing, netns, &pod.ips);
        }
        if let Err(error) = self.adopt_probes(pods).await {
            tracing::warn!(error = %error, "the probe addresses are not in step with the pods");
        }
    }

    /// Entries of every adopted pod are added; those of others are removed only if every pod's addresses are known, since
    /// an entry might be the unknown one.
    async fn adopt_probes(&self, pods: &[Pod]) -> Result<(), KernelError> {
        for pod in pods {
            self.add_probes(&pod.uid, &pod.ips).await?;
        }
        if pods.iter().any(|pod| pod.ips.is_empty()) {
            return Ok(());
        }
        for probe in self.blocking(|kernel| kernel.probes()).await? {
            let known = pods.iter().any(|pod| pod.uid == probe.uid && pod.ips.contains(&probe.ip));
            if !known {
                self.blocking(move |kernel| kernel.remove_probe(&probe)).await?;
            }
        }
        Ok(())
    }

    /// The steps from a known namespace to an enrolled pod. Each leaves the pod closed if the next one fails.
    async fn steps(
        &self,
        pod: &Pod,
        netns: &Netns,
        ips: &[IpAddr],
        deadline: Instant,
    ) -> Result<(), EnrolError> {
        // From the first rule on there is something to undo, whatever happens to the rest.
        self.hold(pod, Standing::Partial, Some(netns.clone()), ips);
        let (capture, inside) = (self.capture(pod), netns.clone());
        self.blocking(move |kernel| kernel.apply_pod(&inside, &capture)).await?;
        self.agents.add(&AgentPod::of(pod), netns.clone(), deadline).await?;
        self.add_probes(&pod.uid, ips).await?;
        self.set_status(pod, Some(Redirection::Enabled), deadline).await?;
        self.hold(pod, Standing::In, Some(netns.clone()), ips);
        tracing::info!(pod = %pod, netns = %netns.id(), "the pod is in the mesh");
        Ok(())
    }

    /// Undoes every step; one that was not reached is nothing to undo. The annotation is only removed if it may be there.
    async fn roll_back(&self, pod: &Pod, netns: &Netns, ips: &[IpAddr], annotated: bool) {
        let report = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(pod = %pod, step = what, error = %error, "a failed enrolment is not fully undone");
        };
        if let Err(error) = self.drop_probes(&pod.uid, ips.to_vec()).await {
            report("probe addresses", &error);
        }
        let inside = netns.clone();
        if let Err(error) = self.blocking(move |kernel| kernel.remove_pod(&inside)).await {
            report("rules", &error);
        }
        // The order is on its way in any case; only the answer is not waited for by all means.
        if tokio::time::timeout(UNDO_PATIENCE, self.agents.del(&pod.uid)).await.is_err() {
            report("data plane", &AgentError::Late);
        }
        self.lock().remove(&pod.uid);
        if annotated && let Err(error) = self.set_status(pod, None, Instant::now() + UNDO_PATIENCE).await {
            report("annotation", &error);
        }
    }

    /// The namespace of a running pod: the one it was enrolled in, or a search.
    async fn netns_of(&self, pod: &Pod) -> Result<Netns, EnrolError> {
        let known = self.lock().get(&pod.uid).and_then(|held| held.netns.clone());
        match known {
            Some(netns) => Ok(netns),
            None => self.search(pod).await?.ok_or_else(|| EnrolError::NoNetns(pod.ips.clone())),
        }
    }

    async fn search(&self, pod: &Pod) -> Result<Option<Netns>, KernelError> {
        let wanted = [Wanted { uid: pod.uid.clone(), ips: pod.ips.clone() }];
        let mut found = self.blocking(move |kernel| kernel.find(&wanted)).await?;
        Ok(found.remove(&pod.uid))
    }

    async fn add_probes(&self, uid: &PodUid, ips: &[IpAddr]) -> Result<(), KernelError> {
        let probes: Vec<_> = ips.iter().map(|ip| Probe { ip: *ip, uid: uid.clone() }).collect();
        self.blocking(move |kernel| probes.iter().try_for_each(|probe| kernel.add_probe(probe))).await
    }

    async fn drop_probes(&self, uid: &PodUid, ips: Vec<IpAddr>) -> Result<(), KernelError> {
        let probes: Vec<_> = ips.into_iter().map(|ip| Probe { ip, uid: uid.clone() }).collect();
        self.blocking(move |kernel| probes.iter().try_for_each(|probe| kernel.remove_probe(probe))).await
    }

    async fn set_status(
        &self,
        pod: &Pod,
        redirection: Option<Redirection>,
        deadline: Instant,
    ) -> Result<(), StatusError> {
        tokio::time::timeout_at(deadline, self.status.set(pod, redirection))
            .await
            .unwrap_or_else(|_| Err(StatusError("the API server did not answer in time".to_owned())))
    }

    fn capture(&self, pod: &Pod) -> Capture {
        pod.capture(self.dns_capture, self.ipv6)
    }

    fn hold(&self, pod: &Pod, standing: Standing, netns: Option<Netns>, ips: &[IpAddr]) {
        self.lock().insert(pod.uid.clone(), Held { standing, netns, ips: ips.to_vec() });
    }

    /// Runs a blocking call where it holds nobody up.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Kernel) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T, KernelError> {
        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || call(&*kernel)).await.unwrap_or_else(|error| {
            Err(KernelError::Failed { what: "kernel call", reason: error.to_string() })
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Held>> {
        // Every change is one insertion or removal.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
