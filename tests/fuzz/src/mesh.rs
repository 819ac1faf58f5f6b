//! An ADS session with its state, fed with responses, and every kind of query to that state.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use isthmus_control::xds::session::{Limits, Push, Session};
use isthmus_model::{Authority, Facts, NetworkAddress, NetworkMode, PolicyKey, Resource, Workload};
use isthmus_proto::discovery::{DeltaDiscoveryResponse, Node};
use isthmus_state::dns::{self, Answer, Domains, Family};
use isthmus_state::route::{Decision, Route};
use isthmus_state::{Batch, Options, Snapshot, State};

use crate::resources::ADDRESSES;

/// Session and state, put together as the agent does it.
#[derive(Debug)]
pub struct Mesh {
    session: Session,
    /// The state.
    pub state: State,
    held: BTreeSet<String>,
}

impl Default for Mesh {
    fn default() -> Self {
        let options = Options {
            own_network: "east".into(),
            own_cluster: "east".into(),
            own_node: "node-1".into(),
            ..Options::default()
        };
        Self {
            session: Session::new(Node::default(), Limits::default()),
            state: State::new(options),
            held: BTreeSet::new(),
        }
    }
}

impl Mesh {
    /// Applies a response and checks the ACK or NACK.
    ///
    /// # Panics
    /// When the answer is wrong, or anything panics.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) {
        let names: BTreeSet<String> = response.resources.iter().map(|one| one.name.clone()).collect();
        let handled = self.session.handle_response(response).expect("few resources");
        assert_eq!(handled.reply.error_detail.is_some(), !handled.rejected.is_empty());
        assert!(handled.rejected.iter().all(|rejection| names.contains(&rejection.name)));
        let mut batch = Batch::default();
        match handled.push {
            Some(Push::Addresses { upserts, removed }) => {
                for resource in upserts {
                    match resource {
                        Resource::Workload(workload) => batch.upsert_workloads.push(workload),
                        Resource::Service(service) => batch.upsert_services.push(service),
                    }
                }
                batch.remove_addresses = removed;
            }
            Some(Push::Policies { upserts, removed, refused }) => {
                let root = "istio-system".into();
                let stand_ins = refused.iter().map(|one| (one.key.clone(), one.stand_in(Some(&root))));
                batch.upsert_policies = stand_ins.chain(upserts).collect();
                batch.remove_policies = removed;
            }
            None => return,
        }
        self.held.extend(batch.upsert_workloads.iter().map(|workload| workload.uid.to_string()));
        self.held.extend(batch.upsert_services.iter().map(|service| service.key().to_string()));
        self.state.apply(batch.clone());
        if batch.remove_addresses.is_empty() && batch.remove_policies.is_empty() {
            let (before, _) = (self.state.load().version(), self.state.apply(batch));
            // A resource that stands twice in a response changes twice; the last one stays.
            assert!(self.state.load().version() <= before + 1);
        }
        consistent(&self.state.load());
    }

    /// Removes everything and checks that the state is empty.
    ///
    /// # Panics
    /// When something is.
    pub fn empty(&self) {
        let snapshot = self.state.load();
        let policies: Vec<PolicyKey> = snapshot.policies().map(|(key, _)| key.clone()).collect();
        let remove = self.held.iter().cloned().collect();
        self.state.apply(Batch { remove_addresses: remove, remove_policies: policies, ..Batch::default() });
        let left = self.state.load();
        assert_eq!((left.workload_count(), left.services().count()), (0, 0));
        assert_eq!((left.policies().count(), left.staged().count()), (0, 0));
    }

    /// Makes every query that a connection or a DNS name could make; returns the kinds of answers.
    ///
    /// # Panics
    /// When an answer is inconsistent.
    pub fn ask(&self, seed: u64) -> BTreeSet<&'static str> {
        let mut answers = BTreeSet::new();
        let (snapshot, mut rng) = (self.state.load(), fastrand::Rng::with_seed(seed));
        let sources: Vec<_> = snapshot.workloads().cloned().collect();
        for source in &sources {
            for address in addresses() {
                for port in [80, 15008, 0] {
                    answers.insert(connection(&snapshot, source, SocketAddr::new(address, port), &mut rng));
                }
            }
            for name in
                ["web", "db.b", "web.a.svc.cluster.local", "www.example.com", "x.y.example.com", ".", ""]
            {
                for family in [Family::V4, Family::V6] {
                    let answer = dns::lookup(&snapshot, source, name, family, &Domains::default());
                    if let Answer::Addresses(found) = answer {
                        answers.insert("name");
                        assert!(!found.addresses.is_empty());
                        assert!(found.addresses.iter().all(|ip| ip.is_ipv4() == (family == Family::V4)));
                    }
                }
            }
        }
        answers
    }
}

/// The addresses that anything can have.
fn addresses() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.iter().filter_map(|bytes| {
        let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
        four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()
    })
}

fn connection(
    snapshot: &Snapshot,
    source: &Workload,
    to: SocketAddr,
    rng: &mut fastrand::Rng,
) -> &'static str {
    let resolved = isthmus_state::resolve(snapshot, source, to, &snapshot.options().own_network, rng);
    let answer = match &resolved.decision {
        Decision::Connect(route) => {
            if let Route::Passthrough { to: through } = route {
                assert_eq!(through.port(), to.port());
            }
            route.kind()
        }
        Decision::NeedsAddress(pending) => {
            assert!(!pending.hostname().is_empty());
            "needs an address"
        }
        Decision::Deny(_) => "deny",
    };
    let facts = Facts { peer: Some(source.identity()), source: to.ip(), destination: to };
    let _ = isthmus_state::authorize(snapshot, source, &facts);
    let _ = isthmus_state::authorize(snapshot, source, &Facts { peer: None, ..facts });
    let own = &snapshot.options().own_network;
    let named = Authority::Host { hostname: "web.a.svc.cluster.local".into(), port: to.port() };
    for authority in [Authority::Ip(to), named] {
        let _ = isthmus_state::inbound_target(snapshot, source, to, &authority, own);
    }
    answer
}

/// Checks that every resource is found by each of its keys.
fn consistent(snapshot: &Snapshot) {
    let mut count = 0;
    for workload in snapshot.workloads() {
        count += 1;
        assert!(snapshot.workload(&workload.uid).is_some_and(|found| found == workload));
        for address in &workload.addresses {
            let at = NetworkAddress { network: workload.network.clone(), address: *address };
            let found = snapshot.workload_by_addr(&at);
            let own = workload.network_mode != NetworkMode::HostNetwork;
            assert!(!own || found.is_some_and(|found| found.addresses.contains(address)));
        }
        for service in workload.services.keys() {
            assert!(snapshot.endpoints(service).any(|endpoint| endpoint.uid() == &workload.uid));
        }
        assert!(workload.node.is_empty() || snapshot.on_node(&workload.node).any(|one| one == workload));
    }
    assert_eq!(count, snapshot.workload_count());
    for service in snapshot.services() {
        assert!(snapshot.service(&service.key()).is_some());
        for vip in &service.vips {
            assert!(snapshot.service_by_vip(vip, None).is_some());
        }
        assert!(snapshot.service_by_hostname(&service.hostname, 0, None).is_some());
        for endpoint in snapshot.endpoints(&service.key()) {
            assert!(snapshot.workload(endpoint.uid()).is_some(), "a ghost");
        }
    }
}
