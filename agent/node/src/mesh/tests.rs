use super::*;
use crate::pod::tests::pod;

/// Kernel, data plane and API server in one: writes down every step and fails the one it is told to.
#[derive(Default)]
struct World {
    log: Mutex<Vec<String>>,
    failing: Mutex<Option<&'static str>>,
    /// What is left in the kernel and elsewhere.
    rules: Mutex<bool>,
    probes: Mutex<Vec<Probe>>,
    served: Mutex<Vec<PodUid>>,
    annotation: Mutex<Option<Redirection>>,
    nowhere: Mutex<bool>,
    /// The agent is connected but never answers.
    mute: Mutex<bool>,
}

impl World {
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

impl Kernel for World {
    fn open(&self, _: &Path) -> Result<Netns, KernelError> {
        self.kernel("open")?;
        Ok(Netns::current().unwrap())
    }
    fn find(&self, wanted: &[Wanted]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        self.kernel("find")?;
        if *self.nowhere.lock().unwrap() {
            return Ok(HashMap::new());
        }
        Ok(wanted.iter().map(|pod| (pod.uid.clone(), Netns::current().unwrap())).collect())
    }
    fn apply_pod(&self, _: &Netns, _: &Capture) -> Result<(), KernelError> {
        // Whatever a failing call has done before it failed.
        *self.rules.lock().unwrap() = true;
        self.kernel("apply rules")
    }
    fn remove_pod(&self, _: &Netns) -> Result<(), KernelError> {
        self.kernel("remove rules")?;
        *self.rules.lock().unwrap() = false;
        Ok(())
    }
    fn apply_host(&self) -> Result<(), KernelError> {
        self.kernel("apply host rules")
    }
    fn probes(&self) -> Result<Vec<Probe>, KernelError> {
        self.kernel("list probes")?;
        Ok(self.probes.lock().unwrap().clone())
    }
    fn add_probe(&self, probe: &Probe) -> Result<(), KernelError> {
        self.kernel("add probe")?;
        let mut probes = self.probes.lock().unwrap();
        probes.retain(|known| known.ip != probe.ip);
        probes.push(probe.clone());
        Ok(())
    }
    fn remove_probe(&self, probe: &Probe) -> Result<(), KernelError> {
        self.kernel("remove probe")?;
        self.probes.lock().unwrap().retain(|known| known != probe);
        Ok(())
    }
}

impl Agents for World {
    fn add<'a>(
        &'a self,
        pod: &'a AgentPod,
        _: Netns,
        until: Instant,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            self.served.lock().unwrap().push(pod.uid.clone());
            if *self.mute.lock().unwrap() {
                tokio::time::sleep_until(until).await;
                return Err(AgentError::Late);
            }
            self.step("zds add").map_err(AgentError::Refused)
        })
    }
    fn adopt(&self, pod: &AgentPod, netns: Option<Netns>) {
        let what = if netns.is_some() { "with" } else { "without" };
        self.log.lock().unwrap().push(format!("adopt {} {what} netns", pod.uid));
    }
    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.log.lock().unwrap().push("zds del".to_owned());
            self.served.lock().unwrap().retain(|served| served != uid);
            if *self.mute.lock().unwrap() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Status for World {
    fn set<'a>(&'a self, _: &'a Pod, to: Option<Redirection>) -> BoxFuture<'a, Result<(), StatusError>> {
        Box::pin(async move {
            let step = match to {
                Some(Redirection::Enabled) => "annotate enabled",
                Some(Redirection::Pending) => "annotate pending",
                None => "annotate null",
            };
            *self.annotation.lock().unwrap() = to;
            self.step(step).map_err(StatusError)
        })
    }
}

fn mesh() -> (Arc<World>, Mesh) {
    let world = Arc::new(World::default());
    let (kernel, agents, status) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
    (world, Mesh::new(kernel, agents, status, true, true))
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

async fn add(mesh: &Mesh, pod: &Pod) -> Result<(), EnrolError> {
    mesh.add(pod, Path::new("/var/run/netns/x"), &pod.ips, deadline()).await
}

const FORWARD: [&str; 5] = ["open", "apply rules", "zds add", "add probe", "annotate enabled"];

#[tokio::test]
async fn an_add_goes_from_rules_to_annotation() {
    let (world, mesh) = mesh();
    let pod = pod("a", "10.0.0.5");
    add(&mesh, &pod).await.unwrap();
    assert_eq!(world.take_log(), FORWARD);
    assert_eq!(mesh.standing(&pod.uid), (Standing::In, pod.ips.clone()));
}

#[tokio::test]
async fn an_add_that_fails_at_any_step_says_why_and_leaves_nothing_behind() {
    for step in FORWARD {
        let (world, mesh) = mesh();
        let pod = pod("a", "10.0.0.5");
        world.fail(Some(step));
        let error = add(&mesh, &pod).await.unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{step}: {error}");
        assert!(world.is_clean(), "{step}: {:?}", world.take_log());
        assert_eq!(mesh.standing(&pod.uid).0, Standing::Out, "{step}");
        // And the retry of the kubelet succeeds.
        world.fail(None);
        add(&mesh, &pod).await.unwrap();
        assert_eq!(mesh.standing(&pod.uid).0, Standing::In, "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_cannot_keep_the_reason_from_the_plugin() {
    let (world, mesh) = mesh();
    *world.mute.lock().unwrap() = true;
    let pod = pod("a", "10.0.0.5");
    let start = Instant::now();
    let until = start + Duration::from_secs(4);
    let error = mesh.add(&pod, Path::new("/var/run/netns/x"), &pod.ips, until).await.unwrap_err();
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(4800), "{:?}", start.elapsed());
    assert!(world.is_clean(), "{:?}", world.take_log());
}

#[tokio::test]
async fn an_add_that_nobody_waits_for_is_taken_back() {
    let (world, mesh) = mesh();
    let pod = pod("a", "10.0.0.5");
    add(&mesh, &pod).await.unwrap();
    assert!(!world.is_clean());
    mesh.undo_add(&pod).await;
    assert!(world.is_clean());
    assert_eq!(mesh.standing(&pod.uid).0, Standing::Out);
}

#[tokio::test]
async fn an_event_without_an_address_is_refused_before_anything_is_done() {
    let (world, mesh) = mesh();
    let error = mesh.add(&pod("a", ""), Path::new("/x"), &[], deadline()).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
    assert!(world.take_log().is_empty());
}

#[tokio::test]
async fn a_new_sandbox_of_a_pod_drops_the_probes_of_the_old_one() {
    let (world, mesh) = mesh();
    let mut pod = pod("a", "10.0.0.5");
    add(&mesh, &pod).await.unwrap();
    pod.ips = vec!["10.0.0.6".parse().unwrap()];
    add(&mesh, &pod).await.unwrap();
    assert_eq!(*world.probes.lock().unwrap(), [Probe { ip: pod.ips[0], uid: pod.uid.clone() }]);
}

#[tokio::test]
async fn a_running_pod_that_fails_half_way_stays_closed_and_pending() {
    for step in &FORWARD[1..] {
        let (world, mesh) = mesh();
        let pod = pod("a", "10.0.0.5");
        world.fail(Some(step));
        assert!(mesh.enrol(&pod).await.is_err());
        assert!(*world.rules.lock().unwrap(), "{step}: the rules stay");
        assert_eq!(*world.annotation.lock().unwrap(), Some(Redirection::Pending), "{step}");
        assert_eq!(mesh.unfinished(), std::slice::from_ref(&pod.uid), "{step}");
        assert!(!world.take_log().contains(&"remove rules".to_owned()), "{step}");
        world.fail(None);
        mesh.enrol(&pod).await.unwrap();
        assert_eq!(*world.annotation.lock().unwrap(), Some(Redirection::Enabled), "{step}");
        assert_eq!(mesh.standing(&pod.uid).0, Standing::In, "{step}");
        // The namespace is known by now.
        assert!(!world.take_log().contains(&"find".to_owned()), "{step}");
    }
}

#[tokio::test]
async fn a_running_pod_without_a_namespace_is_left_as_it_is() {
    let (world, mesh) = mesh();
    *world.nowhere.lock().unwrap() = true;
    let error = mesh.enrol(&pod("a", "10.0.0.5")).await.unwrap_err();
    assert!(error.to_string().contains("10.0.0.5"), "{error}");
    assert_eq!(world.take_log(), ["find"]);
    assert!(world.is_clean());
}

#[tokio::test]
async fn leaving_is_the_reverse_and_spares_a_namespace_that_is_gone() {
    let live = ["remove probe", "remove rules", "zds del", "annotate null"];
    let rows: [(Leaving, bool, &[&str]); 3] = [
        (Leaving::Live, true, &live),
        (Leaving::Ended, true, &["remove probe", "zds del", "annotate null"]),
        (Leaving::Deleted, false, &["remove probe", "zds del"]),
    ];
    for (leaving, exists, steps) in rows {
        let (world, mesh) = mesh();
        let pod = pod("a", "10.0.0.5");
        add(&mesh, &pod).await.unwrap();
        world.take_log();
        mesh.withdraw(&pod.uid, exists.then_some(&pod), leaving).await.unwrap();
        assert_eq!(world.take_log(), steps, "{leaving:?}");
        assert_eq!(mesh.standing(&pod.uid).0, Standing::Out);
        // Once more is nothing.
        mesh.withdraw(&pod.uid, exists.then_some(&pod), leaving).await.unwrap();
        assert!(world.take_log().is_empty());
    }
}

#[tokio::test]
async fn a_withdrawal_that_fails_is_taken_up_where_it_stopped() {
    for step in ["remove probe", "remove rules"] {
        let (world, mesh) = mesh();
        let pod = pod("a", "10.0.0.5");
        add(&mesh, &pod).await.unwrap();
        world.fail(Some(step));
        assert!(mesh.withdraw(&pod.uid, Some(&pod), Leaving::Live).await.is_err());
        assert_eq!(
            mesh.standing(&pod.uid).0,
            Standing::Partial,
            "{step}: wanted again, it must be enrolled anew"
        );
        world.fail(None);
        mesh.withdraw(&pod.uid, Some(&pod), Leaving::Live).await.unwrap();
        assert!(world.is_clean(), "{step}");
    }
}

#[tokio::test]
async fn probes_follow_the_addresses() {
    let (world, mesh) = mesh();
    let mut pod = pod("a", "10.0.0.5");
    add(&mesh, &pod).await.unwrap();
    pod.ips = vec!["10.0.0.6".parse().unwrap(), "fd00::6".parse().unwrap()];
    mesh.sync_probes(&pod).await.unwrap();
    let got: Vec<_> = world.probes.lock().unwrap().iter().map(|probe| probe.ip).collect();
    assert_eq!(got, pod.ips);
    assert_eq!(mesh.standing(&pod.uid).1, pod.ips);
}

fn annotated(name: &str, ip: &str, value: &str) -> Pod {
    let mut pod = pod(name, ip);
    pod.annotations.insert("ambient.istio.io/redirection".to_owned(), value.to_owned());
    pod
}

#[tokio::test]
async fn what_an_earlier_run_enrolled_is_taken_over() {
    let (world, mesh) = mesh();
    let stale = Probe { ip: "10.0.0.9".parse().unwrap(), uid: "gone".into() };
    world.probes.lock().unwrap().push(stale.clone());
    let pods = [annotated("a", "10.0.0.5", "enabled"), annotated("b", "10.0.0.6", "pending")];
    mesh.adopt(&pods, true).await;
    assert_eq!(mesh.standing(&pods[0].uid).0, Standing::In);
    assert_eq!(mesh.standing(&pods[1].uid).0, Standing::Partial);
    assert_eq!(world.probes.lock().unwrap().len(), 2, "the stale entry is gone");
    let log = world.take_log();
    assert_eq!(log.iter().filter(|step| *step == "apply rules").count(), 2);
    assert!(log.contains(&"adopt uid-a with netns".to_owned()), "{log:?}");

    // A pod without a known address might own an entry that looks stale.
    world.probes.lock().unwrap().push(stale.clone());
    mesh.adopt(&[annotated("c", "", "enabled")], false).await;
    assert!(world.probes.lock().unwrap().contains(&stale));
    assert!(!world.take_log().contains(&"apply rules".to_owned()));
}

#[tokio::test]
async fn a_pod_whose_namespace_or_rules_are_lost_is_tried_again_after_the_start() {
    let (world, mesh) = mesh();
    *world.nowhere.lock().unwrap() = true;
    let pod = annotated("a", "10.0.0.5", "enabled");
    mesh.adopt(std::slice::from_ref(&pod), true).await;
    assert_eq!(mesh.unfinished(), std::slice::from_ref(&pod.uid));
    assert!(world.take_log().contains(&"adopt uid-a without netns".to_owned()));

    *world.nowhere.lock().unwrap() = false;
    world.fail(Some("apply rules"));
    mesh.adopt(std::slice::from_ref(&pod), true).await;
    assert_eq!(mesh.unfinished(), [pod.uid]);
}
