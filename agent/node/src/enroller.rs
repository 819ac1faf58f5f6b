//! Enrols pods in the mesh and withdraws them, step by step in the one order that never leaks plaintext: packet rules
//! first, then the agent, then kubelet probes, and the annotation that reports it last. It owns what was done for each
//! pod; when to act, and for which pods, is decided by the controller.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_model::{PodRef, PodUid};
use isthmus_sys::netns::Netns;
use tokio::time::Instant;

use crate::capture::{CaptureError, Gate, Uncapturable, is_own_stack};
use crate::kernel::{Kernel, KernelError};
use crate::metrics::Metrics;
use crate::netns_lookup::NetnsQuery;
use crate::plan::{EnrolmentState, WithdrawReason};
use crate::pod::{CaptureConfig, Pod, Redirection};
use crate::zds::{AgentError, DataPlane};

mod adopt;
pub mod annotation;
pub mod error;
mod established;
mod probes;
pub(crate) mod proof;

use annotation::{AnnotationError, RedirectionAnnotation};
use error::EnrolError;

/// Deadline of the agent's ack and of the API server's answer, each, when no plugin waits.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while a failed add is rolled back: the plugin must receive the reason before it gives up.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(300);

/// What was done for a pod.
#[derive(Debug, Clone)]
struct Enrolment {
    pod: PodRef,
    state: EnrolmentState,
    netns: Option<Netns>,
    ips: Vec<IpAddr>,
    capture: CaptureConfig,
    gate: Gate,
}

/// What applies to every pod.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// Whether DNS is captured, for pods without the annotation.
    pub dns_capture: bool,
    /// Whether rules are written for IPv6 too.
    pub ipv6: bool,
    /// What to do with a pod that cannot be captured.
    pub uncapturable: Uncapturable,
    /// Runtime classes with a network stack of their own; a trailing `*` stands for any end.
    pub own_stack_classes: Vec<String>,
}

/// The pods that are enrolled or on their way.
pub struct Enroller {
    kernel: Arc<dyn Kernel>,
    data_plane: Arc<dyn DataPlane>,
    annotation: Arc<dyn RedirectionAnnotation>,
    dns_capture: bool,
    ipv6: bool,
    uncapturable: Uncapturable,
    own_stack_classes: Vec<String>,
    metrics: Arc<Metrics>,
    /// One for each pod: enrolment, withdrawal and proof exclude each other.
    locks: Mutex<HashMap<PodUid, Arc<tokio::sync::Mutex<()>>>>,
    enrolments: Mutex<HashMap<PodUid, Enrolment>>,
    /// Pods that have left the mesh and have connections that the agent still carries.
    released: Mutex<HashMap<PodUid, Netns>>,
}

impl Enroller {
    /// An enroller without pods.
    #[must_use]
    pub fn new(
        kernel: Arc<dyn Kernel>,
        data_plane: Arc<dyn DataPlane>,
        annotation: Arc<dyn RedirectionAnnotation>,
        defaults: Defaults,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Defaults { dns_capture, ipv6, uncapturable, own_stack_classes } = defaults;
        Self {
            kernel,
            data_plane,
            annotation,
            dns_capture,
            ipv6,
            uncapturable,
            own_stack_classes,
            metrics,
            locks: Mutex::default(),
            enrolments: Mutex::default(),
            released: Mutex::default(),
        }
    }

    /// How far a pod's enrolment has come, and the addresses it was enrolled with.
    #[must_use]
    pub fn state(&self, uid: &PodUid) -> (EnrolmentState, Vec<IpAddr>) {
        let enrolments = self.lock();
        let enrolment = enrolments.get(uid);
        enrolment.map_or((EnrolmentState::NotEnrolled, Vec::new()), |it| (it.state, it.ips.clone()))
    }

    /// The pods whose enrolment is not complete.
    #[must_use]
    pub fn partial(&self) -> Vec<PodUid> {
        let enrolments = self.lock();
        let partial = enrolments.iter().filter(|(_, it)| it.state == EnrolmentState::Partial);
        partial.map(|(uid, _)| uid.clone()).collect()
    }

    /// Enrols a pod whose sandbox was just made. All or nothing: on an error every step is rolled back, because the
    /// kubelet deletes the sandbox and retries with a new one.
    ///
    /// # Errors
    /// With the step that failed. `deadline` bounds the agent and the API server.
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
        let _exclusive = self.exclusive(&pod.pod.uid).await;
        let (path, uid) = (path.to_owned(), pod.pod.uid.clone());
        let netns = self.blocking(move |kernel| kernel.open_netns(&path, &uid)).await?;
        // An earlier sandbox of this pod is gone, and its addresses may have been given to another pod.
        let (_, stale) = self.state(&pod.pod.uid);
        self.remove_probes(&pod.pod.uid, stale.into_iter().filter(|ip| !ips.contains(ip)).collect()).await?;
        let result = self.run_steps(pod, &netns, ips, deadline).await;
        if let Err(EnrolError::Capture(why)) = &result
            && self.may_mark(why)
        {
            return self.mark(pod, &netns, ips, why).await;
        }
        if let Err(error) = &result {
            let annotated = matches!(error, EnrolError::Annotation(_));
            self.roll_back(pod, &netns, ips, annotated).await;
        }
        result
    }

    /// Rolls back a successful [`add`](Self::add) whose plugin has given up.
    pub async fn undo_add(&self, pod: &Pod) {
        let _exclusive = self.exclusive(&pod.pod.uid).await;
        let Some(enrolment) = self.lock().get(&pod.pod.uid).cloned() else { return };
        if let Some(netns) = enrolment.netns {
            self.roll_back(pod, &netns, &enrolment.ips, true).await;
        }
    }

    /// Enrols a running pod. On an error the steps that are done stay, so that the pod fails closed and does not leak
    /// plaintext, and its annotation becomes `pending`.
    ///
    /// # Errors
    /// With the step that failed; all are worth a retry.
    pub async fn enrol(&self, pod: &Pod) -> Result<(), EnrolError> {
        let _exclusive = self.exclusive(&pod.pod.uid).await;
        let result = match self.netns_of(pod).await {
            Ok(netns) => {
                self.leave_established_alone(pod, &netns).await;
                self.run_steps(pod, &netns, &pod.ips, Instant::now() + STEP_TIMEOUT).await
            }
            Err(error) => Err(error),
        };
        if let Err(EnrolError::Capture(why)) = &result {
            let netns = self.lock().get(&pod.pod.uid).and_then(|it| it.netns.clone());
            if let Some(netns) = netns.filter(|_| self.may_mark(why)) {
                return self.mark(pod, &netns, &pod.ips, why).await;
            }
            if pod.redirection() != Some(Redirection::Pending) {
                self.annotation.report_not_captured(&pod.pod, why.to_string()).await;
            }
        }
        if result.is_err()
            && pod.redirection() != Some(Redirection::Pending)
            && let Err(error) =
                self.annotate(pod, Some(Redirection::Pending), Instant::now() + STEP_TIMEOUT).await
        {
            tracing::warn!(%error, "pod not annotated as pending");
        }
        result
    }

    /// Withdraws a pod from the mesh; `pod` is `None` when its object is deleted.
    ///
    /// # Errors
    /// With the step that failed; a retry goes on from there.
    pub async fn withdraw(
        &self,
        uid: &PodUid,
        pod: Option<&Pod>,
        reason: WithdrawReason,
    ) -> Result<(), EnrolError> {
        let _exclusive = self.exclusive(uid).await;
        let Some(enrolment) = self.lock().get_mut(uid).map(|enrolment| {
            // If the pod is selected again before the withdrawal is complete, every step of enrolment must be repeated.
            enrolment.state = EnrolmentState::Partial;
            enrolment.clone()
        }) else {
            return Ok(());
        };
        self.remove_probes(uid, enrolment.ips.clone()).await?;
        let mut released = None;
        if let (WithdrawReason::OptedOut, Some(pod)) = (reason, pod) {
            let netns = match enrolment.netns {
                Some(netns) => Some(netns),
                None => self.find_netns(pod).await?,
            };
            // Rules live in the network namespace: without one there are none.
            if let Some(netns) = netns {
                let inside = netns.clone();
                self.blocking(move |kernel| kernel.release_pod(&inside)).await?;
                released = Some(netns);
            }
        }
        self.data_plane.del(uid).await;
        if let Some(netns) = released {
            self.remove_when_unused(uid, netns).await?;
        }
        self.forget(uid);
        if reason == WithdrawReason::Deleted {
            let uid = uid.clone();
            let forget = move |kernel: &dyn Kernel| {
                kernel.forget_netns(&uid);
                Ok(())
            };
            self.blocking(forget).await?;
        }
        match pod {
            Some(pod) => Ok(self.annotate(pod, None, Instant::now() + STEP_TIMEOUT).await?),
            None => Ok(()),
        }
    }

    /// Removes the annotation of a pod that is not enrolled.
    ///
    /// # Errors
    /// When the API server does not accept it.
    pub async fn clear_annotation(&self, pod: &Pod) -> Result<(), EnrolError> {
        Ok(self.annotate(pod, None, Instant::now() + STEP_TIMEOUT).await?)
    }

    /// The steps from an open network namespace to an enrolled pod. After each of them the pod fails closed if the
    /// next one fails.
    async fn run_steps(
        &self,
        pod: &Pod,
        netns: &Netns,
        ips: &[IpAddr],
        deadline: Instant,
    ) -> Result<(), EnrolError> {
        // Recorded before the first rule is written, because a call that fails may have written some of them.
        self.record(pod, EnrolmentState::Partial, Some(netns.clone()), ips);
        self.released().remove(&pod.pod.uid);
        let sandbox = self.sandbox(pod, netns, ips);
        self.write_rules(&sandbox, Gate::Closed).await?;
        if let Some(class) = &pod.runtime_class
            && is_own_stack(class, &self.own_stack_classes)
        {
            let why = CaptureError::RuntimeClass(class.clone());
            self.shut(&sandbox, &why).await;
            return Err(why.into());
        }
        self.data_plane.add(&pod.pod, netns.clone(), deadline).await?;
        let proved = match self.find_stray(&pod.pod.uid, netns).await {
            Ok(None) => self.prove(&sandbox, deadline).await,
            Ok(Some(stray)) => Err(CaptureError::Stray(stray.process).into()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = proved {
            if let EnrolError::Capture(why) = &error {
                self.shut(&sandbox, why).await;
            }
            return Err(error);
        }
        let inside = netns.clone();
        self.blocking(move |kernel| kernel.set_interfaces(&inside, Gate::Open)).await?;
        self.write_rules(&sandbox, Gate::Open).await?;
        self.add_probes(&pod.pod.uid, ips).await?;
        self.annotate(pod, Some(Redirection::Enabled), deadline).await?;
        self.record(pod, EnrolmentState::Enrolled, Some(netns.clone()), ips);
        self.proved(&pod.pod.uid, Gate::Open);
        tracing::info!(netns = %netns.id(), "pod enrolled in the mesh");
        Ok(())
    }

    /// Undoes every step, also those that were not reached. The annotation is only removed if it may have been
    /// written: for a pod that is being created that would be a pointless request.
    async fn roll_back(&self, pod: &Pod, netns: &Netns, ips: &[IpAddr], annotated: bool) {
        let report = |step: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(step, %error, "failed enrolment not rolled back completely");
        };
        if let Err(error) = self.remove_probes(&pod.pod.uid, ips.to_vec()).await {
            report("probe sets", &error);
        }
        let inside = netns.clone();
        if let Err(error) = self.blocking(move |kernel| kernel.remove_pod(&inside)).await {
            report("rules", &error);
        }
        // The request is sent in any case; only waiting for its ack is bounded.
        if tokio::time::timeout(ROLLBACK_TIMEOUT, self.data_plane.del(&pod.pod.uid)).await.is_err() {
            report("agent", &AgentError::TimedOut);
        }
        self.forget(&pod.pod.uid);
        if annotated && let Err(error) = self.annotate(pod, None, Instant::now() + ROLLBACK_TIMEOUT).await {
            report("annotation", &error);
        }
    }

    /// The network namespace of a running pod: the one it was enrolled in, or a search.
    async fn netns_of(&self, pod: &Pod) -> Result<Netns, EnrolError> {
        let known = self.lock().get(&pod.pod.uid).and_then(|enrolment| enrolment.netns.clone());
        match known {
            Some(netns) => Ok(netns),
            None => self.find_netns(pod).await?.ok_or_else(|| EnrolError::NoNetns(pod.ips.clone())),
        }
    }

    async fn find_netns(&self, pod: &Pod) -> Result<Option<Netns>, KernelError> {
        let query = [NetnsQuery::of(pod)];
        let mut found = self.blocking(move |kernel| kernel.find_netns(&query)).await?;
        Ok(found.remove(&pod.pod.uid))
    }

    async fn annotate(
        &self,
        pod: &Pod,
        redirection: Option<Redirection>,
        deadline: Instant,
    ) -> Result<(), AnnotationError> {
        tokio::time::timeout_at(deadline, self.annotation.set(pod, redirection))
            .await
            .unwrap_or(Err(AnnotationError::TimedOut))
    }

    fn capture(&self, pod: &Pod) -> CaptureConfig {
        pod.capture(self.dns_capture, self.ipv6)
    }

    fn record(&self, pod: &Pod, state: EnrolmentState, netns: Option<Netns>, ips: &[IpAddr]) {
        let enrolment = Enrolment {
            pod: pod.pod.clone(),
            state,
            netns,
            ips: ips.to_vec(),
            capture: self.capture(pod),
            gate: Gate::Closed,
        };
        self.metrics.report_captured(&pod.pod, false);
        self.lock().insert(pod.pod.uid.clone(), enrolment);
    }

    fn forget(&self, uid: &PodUid) {
        if let Some(enrolment) = self.lock().remove(uid) {
            self.metrics.forget_captured(&enrolment.pod);
        }
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Runs a kernel call on the blocking pool.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Kernel) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T, KernelError> {
        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || call(&*kernel))
            .await
            .unwrap_or_else(|error| Err(KernelError::failed("kernel call")(error)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Enrolment>> {
        // Every change is one insertion or removal, so a panic leaves nothing half done.
        self.enrolments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
