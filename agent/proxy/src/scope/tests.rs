//! What a pod's connections share, judged without a connection.

use isthmus_identity::{CertSource, FetchError};
use isthmus_model::{Action, Scope as Reach};
use isthmus_rt::BoxFuture;
use isthmus_state::{Batch, Options, State};

use super::*;
use crate::config::Config;
use crate::metrics::Metrics;

struct Nobody;

impl CertSource for Nobody {
    fn certificate(&self, id: &SpiffeId) -> BoxFuture<'_, Result<Arc<Certificate>, FetchError>> {
        let stopped = FetchError::Stopped(id.clone());
        Box::pin(async { Err(stopped) })
    }
}

fn scope(state: &State) -> Scope {
    let world = Arc::new(World {
        state: state.clone(),
        certs: Arc::new(Nobody),
        network: "east".into(),
        cluster_id: "east".into(),
        settings: isthmus_hbone::Settings::default(),
        config: Config::default(),
        metrics: Arc::new(Metrics::default()),
    });
    let pod = PodInfo {
        uid: "1".into(),
        name: "helloworld".into(),
        namespace: "sample".into(),
        service_account: "helloworld".into(),
    };
    Scope::new(world, pod, Sockets::host(), false)
}

#[tokio::test]
async fn a_policy_that_was_attached_after_the_pod_was_looked_up_counts() {
    let state = State::new(Options::default());
    let scope = scope(&state);
    let pod = Workload {
        uid: "east//Pod/sample/helloworld".into(),
        name: "helloworld".into(),
        namespace: "sample".into(),
        service_account: "helloworld".into(),
        ..Workload::default()
    };
    state.apply(Batch { upsert_workloads: vec![pod.clone()], ..Batch::default() });
    let known = scope.workload().await.unwrap();
    let facts = Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() };
    assert!(scope.judge(&known, &facts).is_ok());
    let deny = Policy {
        name: "nobody".into(),
        namespace: "sample".into(),
        scope: Reach::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Vec::new()],
        dry_run: false,
    };
    let attached = Workload { authorization_policies: vec![deny.key()], ..pod };
    state.apply(Batch {
        upsert_workloads: vec![attached],
        upsert_policies: vec![(deny.key(), deny.clone())],
        ..Batch::default()
    });
    assert_eq!(scope.judge(&known, &facts).unwrap_err().policy, Some(deny.key()));
    // A pod that the control plane no longer describes is judged as it was.
    state.apply(Batch { remove_addresses: vec![known.uid.to_string()], ..Batch::default() });
    assert!(scope.judge(&known, &facts).is_ok());
}
