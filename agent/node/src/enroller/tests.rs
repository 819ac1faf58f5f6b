use super::proof::Verdict;
use super::*;
use crate::capture::{NetnsChanges, Sandbox, Stray};
use crate::kernel::ProbeTarget;
use crate::pod::tests::pod;
use isthmus_model::PodRef;
use isthmus_rt::BoxFuture;

/// Kernel, agent and API server in one: records every step and fails the configured one.
#[derive(Default)]
struct FakeCluster {
    log: Mutex<Vec<String>>,
    failing: Mutex<Option<&'static str>>,
    /// What a failed enrolment must not leave behind.
    rules: Mutex<bool>,
    probes: Mutex<Vec<ProbeTarget>>,
    served: Mutex<Vec<PodUid>>,
    annotation: Mutex<Option<Redirection>>,
    netns_missing: Mutex<bool>,
    /// What proofs say.
    uncaptured: Mutex<Option<fn() -> CaptureError>>,
    gate: Mutex<Option<Gate>>,
    /// Events of pods that are not captured.
    reported: Mutex<Vec<String>>,
    interfaces: Mutex<Option<Gate>>,
    /// An address that the probe sets do not take.
    unprobed: Mutex<Option<IpAddr>>,
    /// The agent is connected but never acks.
    unresponsive: Mutex<bool>,
    /// The agent has connections in the pod's namespace.
    carries: Mutex<bool>,
}

impl FakeCluster {
    fn step(&self, step: &'static str) -> Result<(), String> {
        self.log.lock().unwrap().push(step.to_owned());
        if *self.failing.lock().unwrap() == Some(step) { Err("on purpose".to_owned()) } else { Ok(()) }
    }

    fn kernel(&self, step: &'static str) -> Result<(), KernelError> {
        self.step(step).map_err(KernelError::failed(step))
    }

    fn fail(&self, step: Option<&'static str>) {
        *self.failing.lock().unwrap() = step;
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn is_clean(&self) -> bool {
        !*self.rules.lock().unwrap()
            && self.probes.lock().unwrap().is_empty()
            && self.served.lock().unwrap().is_empty()
            && self.annotation.lock().unwrap().is_none()
    }
}

impl Kernel for FakeCluster {
    fn open_netns(&self, _: &Path, _: &PodUid) -> Result<Netns, KernelError> {
        self.kernel("open")?;
        Ok(Netns::current().unwrap())
    }
    fn forget_netns(&self, _: &PodUid) {
        self.log.lock().unwrap().push("forget".to_owned());
    }
    fn find_netns(&self, queries: &[NetnsQuery]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        self.kernel("find")?;
        if *self.netns_missing.lock().unwrap() {
            return Ok(HashMap::new());
        }
        Ok(queries.iter().map(|query| (query.pod.uid.clone(), Netns::current().unwrap())).collect())
    }
    fn apply_pod(&self, _: &Netns, _: &CaptureConfig, gate: Gate) -> Result<(), KernelError> {
        // A call that fails may have written some of the rules.
        *self.rules.lock().unwrap() = true;
        *self.gate.lock().unwrap() = Some(gate);
        self.kernel(if gate == Gate::Closed { "apply closed rules" } else { "open rules" })
    }
    fn capture_running(&self, _: &Netns, _: &CaptureConfig) -> Result<usize, KernelError> {
        *self.rules.lock().unwrap() = true;
        self.kernel("leave established alone").map(|()| 1)
    }
    fn release_pod(&self, _: &Netns) -> Result<(), KernelError> {
        self.kernel("release rules")
    }
    fn carries(&self, _: &Netns) -> Result<bool, KernelError> {
        Ok(*self.carries.lock().unwrap())
    }
    fn prove(&self, _: &Sandbox) -> Result<(), CaptureError> {
        self.kernel("prove")?;
        match &*self.uncaptured.lock().unwrap() {
            None => Ok(()),
            Some(why) => Err(why()),
        }
    }
    fn compare(&self, _: &Sandbox, _: Gate) -> Result<(), CaptureError> {
        Ok(self.kernel("compare")?)
    }
    fn set_interfaces(&self, _: &Netns, gate: Gate) -> Result<(), KernelError> {
        *self.interfaces.lock().unwrap() = Some(gate);
        Ok(())
    }
    fn changes(&self, _: &Netns) -> Result<Box<dyn NetnsChanges>, KernelError> {
        Err(KernelError::failed("notifications")("none"))
    }
    fn strays(&self, _: &[(PodUid, Netns)]) -> Result<Vec<Stray>, KernelError> {
        Ok(Vec::new())
    }
    fn remove_pod(&self, _: &Netns) -> Result<(), KernelError> {
        self.kernel("remove rules")?;
        *self.rules.lock().unwrap() = false;
        Ok(())
    }
    fn apply_host(&self) -> Result<(), KernelError> {
        self.kernel("apply host rules")
    }
    fn probe_targets(&self) -> Result<Vec<ProbeTarget>, KernelError> {
        self.kernel("list probes")?;
        Ok(self.probes.lock().unwrap().clone())
    }
    fn add_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        self.kernel("add probe")?;
        if *self.unprobed.lock().unwrap() == Some(target.ip) {
            return Err(KernelError::failed("add probe")("on purpose"));
        }
        let mut probes = self.probes.lock().unwrap();
        probes.retain(|known| known.ip != target.ip);
        probes.push(target.clone());
        Ok(())
    }
    fn remove_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        self.kernel("remove probe")?;
        self.probes.lock().unwrap().retain(|known| known != target);
        Ok(())
    }
}

impl DataPlane for FakeCluster {
    fn add<'a>(&'a self, pod: &'a PodRef, _: Netns, until: Instant) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            self.served.lock().unwrap().push(pod.uid.clone());
            if *self.unresponsive.lock().unwrap() {
                tokio::time::sleep_until(until).await;
                return Err(AgentError::TimedOut);
            }
            self.step("zds add").map_err(AgentError::Refused)
        })
    }
    fn adopt(&self, pod: &PodRef, netns: Option<Netns>) {
        let what = if netns.is_some() { "with" } else { "without" };
        self.log.lock().unwrap().push(format!("adopt {} {what} netns", pod.uid));
    }
    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.log.lock().unwrap().push("zds del".to_owned());
            self.served.lock().unwrap().retain(|served| served != uid);
            if *self.unresponsive.lock().unwrap() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl RedirectionAnnotation for FakeCluster {
    fn report_not_captured<'a>(&'a self, _: &'a PodRef, why: String) -> BoxFuture<'a, ()> {
        self.reported.lock().unwrap().push(why);
        Box::pin(async {})
    }
    fn set<'a>(&'a self, _: &'a Pod, to: Option<Redirection>) -> BoxFuture<'a, Result<(), AnnotationError>> {
        Box::pin(async move {
            let step = match to {
                Some(Redirection::Enabled) => "annotate enabled",
                Some(Redirection::Pending) => "annotate pending",
                Some(Redirection::NotCaptured) => "annotate not captured",
                None => "annotate null",
            };
            *self.annotation.lock().unwrap() = to;
            self.step(step).map_err(|error| AnnotationError::Api(error.into()))
        })
    }
}

fn enroller() -> (Arc<FakeCluster>, Enroller) {
    let cluster = Arc::new(FakeCluster::default());
    let (kernel, agents, status) = (Arc::clone(&cluster), Arc::clone(&cluster), Arc::clone(&cluster));
    (cluster, Enroller::new(kernel, agents, status, defaults(), Arc::default()))
}

fn defaults() -> Defaults {
    Defaults {
        dns_capture: true,
        ipv6: true,
        own_stack_classes: vec!["kata*".to_owned()],
        ..Defaults::default()
    }
}

fn deadline() -> Instant {
    Instant::now() + STEP_TIMEOUT
}

async fn add(enroller: &Enroller, pod: &Pod) -> Result<(), EnrolError> {
    enroller.add(pod, Path::new("/var/run/netns/x"), &pod.ips, deadline()).await
}

const FORWARD: [&str; 7] =
    ["open", "apply closed rules", "zds add", "prove", "open rules", "add probe", "annotate enabled"];

#[tokio::test]
async fn an_add_runs_the_steps_from_rules_to_annotation() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    add(&enroller, &pod).await.unwrap();
    assert_eq!(cluster.take_log(), FORWARD);
    assert_eq!(enroller.state(&pod.pod.uid), (EnrolmentState::Enrolled, pod.ips.clone()));
}

#[tokio::test]
async fn an_add_that_fails_at_any_step_is_rolled_back_and_says_why() {
    for step in FORWARD {
        let (cluster, enroller) = enroller();
        let pod = pod("a", "10.0.0.5");
        cluster.fail(Some(step));
        let error = add(&enroller, &pod).await.unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{step}: {error}");
        assert!(cluster.is_clean(), "{step}: {:?}", cluster.take_log());
        assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::NotEnrolled, "{step}");
        // The kubelet's retry succeeds.
        cluster.fail(None);
        add(&enroller, &pod).await.unwrap();
        assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::Enrolled, "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unresponsive_agent_fails_the_add_before_the_plugin_gives_up() {
    let (cluster, enroller) = enroller();
    *cluster.unresponsive.lock().unwrap() = true;
    let pod = pod("a", "10.0.0.5");
    let start = Instant::now();
    let until = start + Duration::from_secs(4);
    let error = enroller.add(&pod, Path::new("/var/run/netns/x"), &pod.ips, until).await.unwrap_err();
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(4800), "{:?}", start.elapsed());
    assert!(cluster.is_clean(), "{:?}", cluster.take_log());
}

#[tokio::test]
async fn undo_add_rolls_back_a_complete_enrolment() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    add(&enroller, &pod).await.unwrap();
    assert!(!cluster.is_clean());
    enroller.undo_add(&pod).await;
    assert!(cluster.is_clean());
    assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::NotEnrolled);
}

#[tokio::test]
async fn an_event_without_an_address_is_refused_before_the_first_step() {
    let (cluster, enroller) = enroller();
    let error = enroller.add(&pod("a", ""), Path::new("/x"), &[], deadline()).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
    assert!(cluster.take_log().is_empty());
}

#[tokio::test]
async fn a_new_sandbox_replaces_the_probe_entries_of_the_old_one() {
    let (cluster, enroller) = enroller();
    let mut pod = pod("a", "10.0.0.5");
    add(&enroller, &pod).await.unwrap();
    pod.ips = vec!["10.0.0.6".parse().unwrap()];
    add(&enroller, &pod).await.unwrap();
    assert_eq!(*cluster.probes.lock().unwrap(), [ProbeTarget { ip: pod.ips[0], uid: pod.pod.uid.clone() }]);
}

#[tokio::test]
async fn a_running_pod_whose_enrolment_fails_stays_redirected_and_pending() {
    for step in &FORWARD[1..] {
        let (cluster, enroller) = enroller();
        let pod = pod("a", "10.0.0.5");
        cluster.fail(Some(step));
        assert!(enroller.enrol(&pod).await.is_err());
        assert!(*cluster.rules.lock().unwrap(), "{step}: the rules stay");
        assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::Pending), "{step}");
        assert_eq!(enroller.partial(), std::slice::from_ref(&pod.pod.uid), "{step}");
        assert!(!cluster.take_log().contains(&"remove rules".to_owned()), "{step}");
        cluster.fail(None);
        enroller.enrol(&pod).await.unwrap();
        assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::Enabled), "{step}");
        assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::Enrolled, "{step}");
        // The network namespace is known from the first attempt.
        assert!(!cluster.take_log().contains(&"find".to_owned()), "{step}");
    }
}

#[tokio::test]
async fn a_running_pod_without_evidence_of_its_namespace_is_pending() {
    let (cluster, enroller) = enroller();
    *cluster.netns_missing.lock().unwrap() = true;
    let error = enroller.enrol(&pod("a", "10.0.0.5")).await.unwrap_err();
    assert!(error.to_string().contains("10.0.0.5"), "{error}");
    assert_eq!(cluster.take_log(), ["find", "annotate pending"]);
    assert!(!*cluster.rules.lock().unwrap() && cluster.served.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_withdrawal_undoes_what_its_reason_requires() {
    let live = ["remove probe", "release rules", "zds del", "remove rules", "annotate null"];
    let rows: [(WithdrawReason, bool, &[&str]); 3] = [
        (WithdrawReason::OptedOut, true, &live),
        (WithdrawReason::Terminated, true, &["remove probe", "zds del", "annotate null"]),
        (WithdrawReason::Deleted, false, &["remove probe", "zds del", "forget"]),
    ];
    for (reason, exists, steps) in rows {
        let (cluster, enroller) = enroller();
        let pod = pod("a", "10.0.0.5");
        add(&enroller, &pod).await.unwrap();
        cluster.take_log();
        enroller.withdraw(&pod.pod.uid, exists.then_some(&pod), reason).await.unwrap();
        assert_eq!(cluster.take_log(), steps, "{reason:?}");
        assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::NotEnrolled);
        // A second withdrawal does nothing.
        enroller.withdraw(&pod.pod.uid, exists.then_some(&pod), reason).await.unwrap();
        assert!(cluster.take_log().is_empty());
    }
}

#[tokio::test]
async fn rules_stay_for_as_long_as_the_agent_carries_connections() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    add(&enroller, &pod).await.unwrap();
    cluster.take_log();
    *cluster.carries.lock().unwrap() = true;
    let withdrawn = async || enroller.withdraw(&pod.pod.uid, Some(&pod), WithdrawReason::OptedOut).await;
    withdrawn().await.unwrap();
    enroller.sweep_released().await;
    assert_eq!(cluster.take_log(), ["remove probe", "release rules", "zds del", "annotate null"]);
    // A failed removal is retried.
    *cluster.carries.lock().unwrap() = false;
    for (failing, left) in [(Some("remove rules"), true), (None, false)] {
        cluster.fail(failing);
        enroller.sweep_released().await;
        assert_eq!(cluster.take_log(), ["remove rules"]);
        assert_eq!(*cluster.rules.lock().unwrap(), left);
    }
    enroller.sweep_released().await;
    assert!(cluster.take_log().is_empty());
    // One that comes back meanwhile keeps its rules.
    *cluster.carries.lock().unwrap() = true;
    add(&enroller, &pod).await.unwrap();
    withdrawn().await.unwrap();
    add(&enroller, &pod).await.unwrap();
    *cluster.carries.lock().unwrap() = false;
    enroller.sweep_released().await;
    assert!(*cluster.rules.lock().unwrap());
}

#[tokio::test]
async fn only_the_first_enrolment_of_a_running_pod_leaves_established_connections_alone() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    let spared = || cluster.take_log().iter().filter(|step| *step == "leave established alone").count();
    cluster.fail(Some("zds add"));
    enroller.enrol(&pod).await.unwrap_err();
    assert_eq!(spared(), 1);
    cluster.fail(None);
    enroller.enrol(&pod).await.unwrap();
    assert_eq!(spared(), 0, "what was opened since then has no such right");
    // Where the kernel cannot tell them apart, the pod is enrolled all the same.
    enroller.withdraw(&pod.pod.uid, Some(&pod), WithdrawReason::OptedOut).await.unwrap();
    cluster.take_log();
    cluster.fail(Some("leave established alone"));
    enroller.enrol(&pod).await.unwrap();
    assert_eq!(spared(), 1);
    // A pod that starts in the mesh has none.
    let other = self::pod("b", "10.0.0.6");
    add(&enroller, &other).await.unwrap();
    assert_eq!(spared(), 0);
}

#[tokio::test]
async fn a_failed_withdrawal_resumes_and_counts_as_partial() {
    for step in ["remove probe", "release rules", "remove rules"] {
        let (cluster, enroller) = enroller();
        let pod = pod("a", "10.0.0.5");
        add(&enroller, &pod).await.unwrap();
        cluster.fail(Some(step));
        assert!(enroller.withdraw(&pod.pod.uid, Some(&pod), WithdrawReason::OptedOut).await.is_err());
        assert_eq!(
            enroller.state(&pod.pod.uid).0,
            EnrolmentState::Partial,
            "{step}: selected again, every step must be repeated"
        );
        cluster.fail(None);
        enroller.withdraw(&pod.pod.uid, Some(&pod), WithdrawReason::OptedOut).await.unwrap();
        assert!(cluster.is_clean(), "{step}");
    }
}

#[tokio::test]
async fn probe_entries_follow_the_pods_addresses() {
    let (cluster, enroller) = enroller();
    let mut pod = pod("a", "10.0.0.5");
    add(&enroller, &pod).await.unwrap();
    pod.ips = vec!["10.0.0.6".parse().unwrap(), "fd00::6".parse().unwrap()];
    enroller.sync_probes(&pod).await.unwrap();
    let got: Vec<_> = cluster.probes.lock().unwrap().iter().map(|probe| probe.ip).collect();
    assert_eq!(got, pod.ips);
    assert_eq!(enroller.state(&pod.pod.uid).1, pod.ips);
}

fn annotated(name: &str, ip: &str, value: &str) -> Pod {
    let mut pod = pod(name, ip);
    pod.annotations.insert("ambient.istio.io/redirection".to_owned(), value.to_owned());
    pod
}

#[tokio::test]
async fn enrolled_pods_are_adopted_and_stale_probe_entries_removed() {
    let (cluster, enroller) = enroller();
    let stale = ProbeTarget { ip: "10.0.0.9".parse().unwrap(), uid: "gone".into() };
    cluster.probes.lock().unwrap().push(stale.clone());
    let pods = [annotated("a", "10.0.0.5", "enabled"), annotated("b", "10.0.0.6", "pending")];
    enroller.adopt(&pods, true).await;
    assert_eq!(enroller.state(&pods[0].pod.uid).0, EnrolmentState::Enrolled);
    assert_eq!(enroller.state(&pods[1].pod.uid).0, EnrolmentState::Partial);
    assert_eq!(cluster.probes.lock().unwrap().len(), 2, "the stale entry is gone");
    let log = cluster.take_log();
    assert_eq!(log.iter().filter(|step| *step == "open rules").count(), 2);
    assert!(log.contains(&"adopt uid-a with netns".to_owned()), "{log:?}");

    // An entry that looks stale may belong to a pod without a known address.
    cluster.probes.lock().unwrap().push(stale.clone());
    enroller.adopt(&[annotated("c", "", "enabled")], false).await;
    assert!(cluster.probes.lock().unwrap().contains(&stale));
    assert!(!cluster.take_log().contains(&"open rules".to_owned()));
}

#[tokio::test]
async fn an_adopted_pod_without_namespace_or_rules_is_partial() {
    let (cluster, enroller) = enroller();
    *cluster.netns_missing.lock().unwrap() = true;
    let pod = annotated("a", "10.0.0.5", "enabled");
    enroller.adopt(std::slice::from_ref(&pod), true).await;
    assert_eq!(enroller.partial(), std::slice::from_ref(&pod.pod.uid));
    assert!(cluster.take_log().contains(&"adopt uid-a without netns".to_owned()));

    *cluster.netns_missing.lock().unwrap() = false;
    cluster.fail(Some("open rules"));
    enroller.adopt(std::slice::from_ref(&pod), true).await;
    assert_eq!(enroller.partial(), [pod.pod.uid]);
}

#[tokio::test]
async fn one_pods_probe_entry_that_fails_at_start_is_retried_and_delays_no_other() {
    let (cluster, enroller) = enroller();
    let pods = [annotated("a", "10.0.0.5", "enabled"), annotated("b", "10.0.0.6", "enabled")];
    *cluster.unprobed.lock().unwrap() = Some(pods[0].ips[0]);
    enroller.adopt(&pods, false).await;
    let added: Vec<_> = cluster.probes.lock().unwrap().iter().map(|probe| probe.ip).collect();
    assert_eq!(added, pods[1].ips);
    assert_eq!(enroller.partial(), std::slice::from_ref(&pods[0].pod.uid));
    *cluster.unprobed.lock().unwrap() = None;
    enroller.enrol(&pods[0]).await.unwrap();
    assert_eq!(cluster.probes.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_enabled_only_after_the_proof_and_closed_until_then() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    *cluster.uncaptured.lock().unwrap() =
        Some(|| CaptureError::NotRedirected(crate::capture::Direction::Inbound));
    let error = enroller.enrol(&pod).await.unwrap_err();
    assert!(error.to_string().contains("inbound"), "{error}");
    assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::Pending));
    assert_eq!(*cluster.gate.lock().unwrap(), Some(Gate::Closed));
    assert!(cluster.probes.lock().unwrap().is_empty());
    *cluster.uncaptured.lock().unwrap() = None;
    enroller.enrol(&pod).await.unwrap();
    assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::Enabled));
    assert_eq!(*cluster.gate.lock().unwrap(), Some(Gate::Open));
    assert!(enroller.metrics.captures().iter().all(|it| it.captured && it.proved_at.is_some()));
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_has_lost_is_put_back_closed_and_opened_after_the_proof() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    enroller.enrol(&pod).await.unwrap();
    cluster.take_log();
    assert!(matches!(enroller.verify(&pod.pod.uid).await, Verdict::Captured));
    assert_eq!(cluster.take_log(), ["compare", "prove"]);
    cluster.fail(Some("compare"));
    assert!(matches!(enroller.verify(&pod.pod.uid).await, Verdict::Captured));
    assert_eq!(cluster.take_log(), ["compare", "apply closed rules", "prove", "open rules"]);
    // Put back in vain: it stays closed and is enrolled again.
    *cluster.uncaptured.lock().unwrap() =
        Some(|| CaptureError::NotRedirected(crate::capture::Direction::Outbound));
    assert!(matches!(enroller.verify(&pod.pod.uid).await, Verdict::Lost));
    assert_eq!(*cluster.gate.lock().unwrap(), Some(Gate::Closed));
    assert_eq!(enroller.partial(), [pod.pod.uid]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_its_agent_is_closed_and_stays_enrolled() {
    let (cluster, enroller) = enroller();
    let pod = pod("a", "10.0.0.5");
    enroller.enrol(&pod).await.unwrap();
    *cluster.uncaptured.lock().unwrap() = Some(|| CaptureError::NotServed);
    for _ in 0..2 {
        assert!(matches!(enroller.verify(&pod.pod.uid).await, Verdict::Captured));
        assert_eq!(*cluster.gate.lock().unwrap(), Some(Gate::Closed));
    }
    *cluster.uncaptured.lock().unwrap() = None;
    assert!(matches!(enroller.verify(&pod.pod.uid).await, Verdict::Captured));
    assert_eq!(*cluster.gate.lock().unwrap(), Some(Gate::Open));
    assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::Enabled));
}

#[tokio::test]
async fn a_pod_with_a_network_stack_of_its_own_is_refused() {
    let (cluster, enroller) = enroller();
    let pod = Pod { runtime_class: Some("kata-qemu".to_owned()), ..pod("a", "10.0.0.5") };
    let error = add(&enroller, &pod).await.unwrap_err();
    assert!(error.to_string().contains("kata-qemu"), "{error}");
    assert!(cluster.is_clean());
}

#[tokio::test]
async fn a_pod_that_cannot_be_captured_runs_out_of_the_mesh_and_is_marked_if_the_setting_says_so() {
    let cluster = Arc::new(FakeCluster::default());
    let (kernel, agents, status) = (Arc::clone(&cluster), Arc::clone(&cluster), Arc::clone(&cluster));
    let defaults = Defaults { uncapturable: Uncapturable::Mark, ..defaults() };
    let enroller = Enroller::new(kernel, agents, status, defaults, Arc::default());
    let class = Pod { runtime_class: Some("kata".to_owned()), ..pod("a", "10.0.0.5") };
    add(&enroller, &class).await.unwrap();
    let running = pod("b", "10.0.0.6");
    *cluster.uncaptured.lock().unwrap() = Some(|| CaptureError::OwnStack);
    enroller.enrol(&running).await.unwrap();
    for pod in [class, running] {
        assert_eq!(enroller.state(&pod.pod.uid).0, EnrolmentState::Uncaptured);
    }
    assert_eq!(*cluster.annotation.lock().unwrap(), Some(Redirection::NotCaptured));
    assert_eq!(cluster.reported.lock().unwrap().len(), 2);
    assert!(!*cluster.rules.lock().unwrap() && cluster.served.lock().unwrap().is_empty());
    assert_eq!(*cluster.interfaces.lock().unwrap(), None, "it must not be closed");
}
