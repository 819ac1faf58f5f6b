//! Schedules the proofs of enrolled pods: at once when the kernel says that something in a pod's namespace has changed,
//! and every two seconds in any case. What a proof is, and what is done about a loss, is the enroller's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::{Netns, NetnsId};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::capture::NetnsChanges;
use crate::enroller::Enroller;
use crate::enroller::proof::Verdict;

/// Longest time between two proofs of a pod.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between looks for pods that are new.
const ROUND: Duration = Duration::from_millis(200);
/// Between looks for processes in other namespaces.
const STRAYS: Duration = Duration::from_secs(1);
/// Shortest time between two proofs of one pod; grows with each that changes have caused without a pause, so that a pod
/// that changes its rules all the time costs little.
const PACE: Duration = Duration::from_millis(50);
/// The longest it grows to.
const SLOWEST: Duration = Duration::from_secs(1);
/// Proofs at the same time.
const PROOFS: usize = 4;

/// Watches until the drain; pods that have lost their capture are sent to `lost`.
pub(crate) async fn run(enroller: Arc<Enroller>, lost: mpsc::UnboundedSender<PodUid>, drain: Watch) {
    let tasks = Tasks::new("capture watch");
    let proofs = Arc::new(Semaphore::new(PROOFS));
    let mut watched: HashMap<PodUid, NetnsId> = HashMap::new();
    let (mut suspects, mut searched) = (HashSet::new(), Instant::now());
    loop {
        let now = enroller.watched();
        watched.retain(|uid, id| now.iter().any(|(other, netns)| other == uid && netns.id() == *id));
        for (uid, netns) in now {
            if watched.insert(uid.clone(), netns.id()).is_none() {
                let pod =
                    PodWatch { enroller: Arc::clone(&enroller), uid, netns, proofs: Arc::clone(&proofs) };
                tasks.spawn("pod's capture", pod.run(lost.clone(), drain.clone()));
            }
        }
        if searched.elapsed() >= STRAYS {
            suspects = find_strays(&enroller, suspects, &lost).await;
            enroller.sweep_released().await;
            searched = Instant::now();
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = drain.graceful() => break,
        }
    }
    tasks.wait().await;
}

/// A process on its way into its namespace is in another one for a moment: it counts when it is seen twice.
async fn find_strays(
    enroller: &Enroller,
    suspects: HashSet<(PodUid, String)>,
    lost: &mpsc::UnboundedSender<PodUid>,
) -> HashSet<(PodUid, String)> {
    let strays = enroller.strays().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "processes of pods in other namespaces not searched");
        Vec::new()
    });
    let mut seen = HashSet::new();
    for stray in strays {
        let suspect = (stray.pod.clone(), stray.process.clone());
        if suspects.contains(&suspect) && matches!(enroller.stray(&stray).await, Verdict::Lost) {
            let _ = lost.send(stray.pod.clone());
        }
        seen.insert(suspect);
    }
    seen
}

struct PodWatch {
    enroller: Arc<Enroller>,
    uid: PodUid,
    netns: Netns,
    proofs: Arc<Semaphore>,
}

impl PodWatch {
    async fn run(self, lost: mpsc::UnboundedSender<PodUid>, drain: Watch) {
        let mut changes = self.enroller.changes(&self.netns).unwrap_or_else(|error| {
            tracing::warn!(uid = %self.uid, %error, "changes of a pod's rules are noticed every {INTERVAL:?} only");
            Box::new(NoChanges)
        });
        let mut pace = PACE;
        // Before the first wait too: what changed between enrolment and subscription was announced to no one.
        let mut wait = Duration::ZERO;
        loop {
            let begun = Instant::now();
            tokio::select! {
                () = changes.changed() => {}
                () = tokio::time::sleep(std::mem::replace(&mut wait, INTERVAL)) => {}
                () = drain.graceful() => return,
            }
            pace = if begun.elapsed() < pace * 2 { (pace * 2).min(SLOWEST) } else { PACE };
            let Ok(_permit) = self.proofs.acquire().await else { return };
            match self.enroller.verify(&self.uid).await {
                Verdict::Captured => {}
                Verdict::Lost => {
                    // The receiver is gone when the role ends.
                    let _ = lost.send(self.uid.clone());
                    return;
                }
                Verdict::NotWatched if self.still_enrolled() => {}
                Verdict::NotWatched => return,
            }
            tokio::time::sleep(pace).await;
        }
    }

    fn still_enrolled(&self) -> bool {
        self.enroller.watched().iter().any(|(uid, netns)| *uid == self.uid && netns.id() == self.netns.id())
    }
}

/// Stands in where the kernel notifies of nothing.
struct NoChanges;

impl NetnsChanges for NoChanges {
    fn changed(&mut self) -> isthmus_rt::BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}
