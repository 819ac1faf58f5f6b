//! Proving again and again that enrolled pods are captured: what was lost is put back at once, and the pod is closed until
//! the proof.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::error::EnrolError;
use super::{Enroller, Enrolment};
use crate::capture::{CaptureError, Gate, NetnsChanges, Sandbox, Stray, Uncapturable};
use crate::kernel::KernelError;
use crate::plan::EnrolmentState;
use crate::pod::{Pod, Redirection};

/// How long a proof may take after the agent has said that it serves the pod.
const PROOF: Duration = Duration::from_secs(1);
/// Between two canaries of one proof.
const RETRY: Duration = Duration::from_millis(50);

/// What a check of an enrolled pod has shown.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is captured.
    Captured,
    /// The pod is not enrolled any more, or something else works on it, which proves it itself.
    NotWatched,
    /// It is not captured; the pod is closed, and must be enrolled again.
    Lost,
}

impl Enroller {
    /// The enrolled pods with their namespaces.
    pub(crate) fn watched(&self) -> Vec<(PodUid, Netns)> {
        let enrolments = self.lock();
        let enrolled = enrolments.iter().filter(|(_, it)| it.state == EnrolmentState::Enrolled);
        enrolled.filter_map(|(uid, it)| Some((uid.clone(), it.netns.clone()?))).collect()
    }

    /// Subscribes to changes of a pod's namespace.
    pub(crate) fn changes(&self, netns: &Netns) -> Result<Box<dyn NetnsChanges>, KernelError> {
        self.kernel.changes(netns)
    }

    /// Excludes everything else that works on a pod.
    pub(super) async fn exclusive(&self, uid: &PodUid) -> OwnedMutexGuard<()> {
        let lock = Arc::clone(
            self.locks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .entry(uid.clone())
                .or_default(),
        );
        lock.lock_owned().await
    }

    fn try_exclusive(&self, uid: &PodUid) -> Option<OwnedMutexGuard<()>> {
        let locks = self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(locks.get(uid)?).try_lock_owned().ok()
    }

    /// Proves that a pod is captured, with some patience for an agent that has just begun to serve it.
    pub(super) async fn prove(&self, sandbox: &Sandbox, deadline: Instant) -> Result<(), EnrolError> {
        let deadline = deadline.min(Instant::now() + PROOF);
        loop {
            let error = match self.ask(sandbox, |kernel, sandbox| kernel.prove(sandbox)).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.is_uncapturable() || Instant::now() + RETRY >= deadline {
                return Err(error.into());
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether a pod that cannot be captured runs out of the mesh.
    pub(super) fn may_mark(&self, why: &CaptureError) -> bool {
        why.is_uncapturable() && self.uncapturable == Uncapturable::Mark
    }

    /// Leaves a pod that cannot be captured out of the mesh, and says so.
    pub(super) async fn mark(
        &self,
        pod: &Pod,
        netns: &Netns,
        ips: &[std::net::IpAddr],
        why: &CaptureError,
    ) -> Result<(), EnrolError> {
        tracing::warn!(error = %why, "pod is not captured and runs out of the mesh, as UNCAPTURABLE_PODS says");
        let inside = netns.clone();
        self.blocking(move |kernel| kernel.remove_pod(&inside)).await?;
        self.data_plane.del(&pod.pod.uid).await;
        self.record(pod, EnrolmentState::Uncaptured, Some(netns.clone()), ips);
        self.annotation.report_not_captured(&pod.pod, why.to_string()).await;
        Ok(self.annotate(pod, Some(Redirection::NotCaptured), Instant::now() + super::STEP_TIMEOUT).await?)
    }

    /// A process of a pod that is in another namespace than the pod's.
    pub(super) async fn find_stray(&self, uid: &PodUid, netns: &Netns) -> Result<Option<Stray>, KernelError> {
        let pod = [(uid.clone(), netns.clone())];
        Ok(self.blocking(move |kernel| kernel.strays(&pod)).await?.into_iter().next())
    }

    /// Checks an enrolled pod: its rules are what they should be, and canaries come out at the agent.
    pub(crate) async fn verify(&self, uid: &PodUid) -> Verdict {
        let Some(_exclusive) = self.try_exclusive(uid) else { return Verdict::NotWatched };
        let Some((enrolment, sandbox)) = self.enrolled(uid) else { return Verdict::NotWatched };
        let gate = enrolment.gate;
        let compared = self.ask(&sandbox, move |kernel, sandbox| kernel.compare(sandbox, gate)).await;
        let lost = match compared {
            Ok(()) => match self.ask(&sandbox, |kernel, sandbox| kernel.prove(sandbox)).await {
                Ok(()) if gate == Gate::Open => {
                    self.proved(uid, Gate::Open);
                    return Verdict::Captured;
                }
                Ok(()) => return self.reopen(uid, &enrolment, &sandbox).await,
                // Known already, and closed since.
                Err(CaptureError::NotServed) if gate == Gate::Closed => return Verdict::Captured,
                Err(error) => error,
            },
            Err(error) => error,
        };
        self.restore(uid, &enrolment, &sandbox, lost).await
    }

    /// Puts back what a pod has lost, closed, and opens it when the canaries say so.
    async fn restore(
        &self,
        uid: &PodUid,
        enrolment: &Enrolment,
        sandbox: &Sandbox,
        lost: CaptureError,
    ) -> Verdict {
        let pod = &enrolment.pod;
        tracing::warn!(%pod, error = %lost, "pod is not captured, closing it");
        self.metrics.report_captured(&enrolment.pod, false);
        self.shut(sandbox, &lost).await;
        if matches!(lost, CaptureError::NotServed) {
            self.set_gate(uid, Gate::Closed);
            return Verdict::Captured;
        }
        if !lost.is_uncapturable() {
            match self.prove(sandbox, Instant::now() + PROOF).await {
                Ok(()) => {
                    tracing::info!(%pod, "what the pod had lost is restored");
                    return self.reopen(uid, enrolment, sandbox).await;
                }
                // Redirected and refused: it is captured, and waits for its agent.
                Err(EnrolError::Capture(CaptureError::NotServed)) => {
                    self.set_gate(uid, Gate::Closed);
                    return Verdict::Captured;
                }
                Err(error) => {
                    tracing::warn!(%pod, %error, "pod stays closed");
                    if let EnrolError::Capture(why) = &error {
                        self.shut(sandbox, why).await;
                    }
                }
            }
        }
        if let Some(enrolment) = self.lock().get_mut(uid) {
            enrolment.state = EnrolmentState::Partial;
        }
        Verdict::Lost
    }

    async fn reopen(&self, uid: &PodUid, enrolment: &Enrolment, sandbox: &Sandbox) -> Verdict {
        let netns = sandbox.netns.clone();
        let opened = self.blocking(move |kernel| kernel.set_interfaces(&netns, Gate::Open)).await;
        let opened = match opened {
            Ok(()) => self.write_rules(sandbox, Gate::Open).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(()) => self.proved(uid, Gate::Open),
            Err(error) => {
                tracing::warn!(pod = %enrolment.pod, %error, "proved pod not opened, will be retried")
            }
        }
        Verdict::Captured
    }

    /// Closes a pod by its rules, and below them where packets do not pass those.
    pub(super) async fn shut(&self, sandbox: &Sandbox, why: &CaptureError) {
        let report =
            |error: KernelError| tracing::error!(%error, "pod that is not captured cannot be closed");
        if let Err(error) = self.write_rules(sandbox, Gate::Closed).await {
            report(error);
        }
        // Where rules were written and did not lead canaries to the agent, something passes them too.
        let passed = why.is_uncapturable()
            || matches!(why, CaptureError::NotRedirected(_) | CaptureError::NotTheAgents(_));
        if passed && !self.may_mark(why) {
            let netns = sandbox.netns.clone();
            if let Err(error) = self.blocking(move |kernel| kernel.set_interfaces(&netns, Gate::Closed)).await
            {
                report(error);
            }
        }
    }

    /// Closes a namespace that a pod's process has fled to, and gives its pod up.
    pub(crate) async fn stray(&self, stray: &Stray) -> Verdict {
        let Some(_exclusive) = self.try_exclusive(&stray.pod) else { return Verdict::NotWatched };
        let Some((enrolment, sandbox)) = self.enrolled(&stray.pod) else { return Verdict::NotWatched };
        if let (Some(netns), Uncapturable::Refuse) = (stray.netns.clone(), self.uncapturable)
            && let Err(error) = self.blocking(move |kernel| kernel.set_interfaces(&netns, Gate::Closed)).await
        {
            tracing::error!(pod = %enrolment.pod, %error, "pod that is not captured cannot be closed");
        }
        let why = CaptureError::Stray(stray.process.clone());
        self.restore(&stray.pod, &enrolment, &sandbox, why).await
    }

    pub(super) async fn write_rules(&self, sandbox: &Sandbox, gate: Gate) -> Result<(), KernelError> {
        let Sandbox { netns, capture, .. } = sandbox.clone();
        self.blocking(move |kernel| kernel.apply_pod(&netns, &capture, gate)).await
    }

    /// The processes of enrolled pods that are elsewhere.
    pub(crate) async fn strays(&self) -> Result<Vec<Stray>, KernelError> {
        let pods = self.watched();
        self.blocking(move |kernel| kernel.strays(&pods)).await
    }

    fn enrolled(&self, uid: &PodUid) -> Option<(Enrolment, Sandbox)> {
        let enrolment = self.lock().get(uid)?.clone();
        let netns = enrolment.netns.clone().filter(|_| enrolment.state == EnrolmentState::Enrolled)?;
        let sandbox = Sandbox { netns, ips: enrolment.ips.clone(), capture: enrolment.capture.clone() };
        Some((enrolment, sandbox))
    }

    pub(super) fn proved(&self, uid: &PodUid, gate: Gate) {
        if let Some(enrolment) = self.lock().get_mut(uid) {
            enrolment.gate = gate;
            self.metrics.report_captured(&enrolment.pod, true);
        }
    }

    fn set_gate(&self, uid: &PodUid, gate: Gate) {
        if let Some(enrolment) = self.lock().get_mut(uid) {
            enrolment.gate = gate;
        }
    }

    pub(super) fn sandbox(&self, pod: &Pod, netns: &Netns, ips: &[std::net::IpAddr]) -> Sandbox {
        Sandbox { netns: netns.clone(), ips: ips.to_vec(), capture: self.capture(pod) }
    }

    pub(super) async fn ask(
        &self,
        sandbox: &Sandbox,
        call: impl FnOnce(&dyn crate::kernel::Kernel, &Sandbox) -> Result<(), CaptureError> + Send + 'static,
    ) -> Result<(), CaptureError> {
        let sandbox = sandbox.clone();
        self.blocking(move |kernel| Ok(call(kernel, &sandbox))).await?
    }
}
