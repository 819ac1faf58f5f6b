use super::pods::{ConnectionView, Connections, PodView};
use super::*;
use crate::Each;
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{Action, NetworkAddress, Protocol, Scope};
use serde_json::Value;

#[derive(Default)]
struct World {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    staged: Vec<NamespacedHostname>,
    ports: PortMap,
}

/// The source, and what it holds.
struct Live(Arc<World>);

fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        vips: vec![NetworkAddress { network: "net1".into(), address: "10.96.0.7".parse().unwrap() }],
        cidr_vips: Vec::new(),
        ports: [(80, 8080)].into(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: true,
        visibility: isthmus_model::Visibility::Public,
    }
}

fn workload(name: &str) -> Workload {
    Workload {
        uid: format!("c1//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec!["10.1.0.5".parse().unwrap()],
        protocol: Protocol::Hbone,
        capacity: 1,
        ..Workload::default()
    }
}

fn policy() -> Policy {
    let only = Match {
        principals: vec![StringMatch::Exact("td/ns/a/sa/b".into())],
        destination_ports: vec![80],
        ..Match::default()
    };
    Policy {
        name: "only-web".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: vec![vec![vec![only]]],
        dry_run: false,
    }
}

fn world() -> World {
    World {
        workloads: vec![workload("cart-1")],
        services: vec![service("cart")],
        policies: vec![policy()],
        staged: vec![NamespacedHostname::parse("shop/later.shop.svc.cluster.local").unwrap()],
        ports: [(80, 8080)].into(),
    }
}

impl View for World {
    fn workloads(&self) -> Each<'_, &Workload> {
        Box::new(self.workloads.iter())
    }
    fn services(&self) -> Each<'_, &Service> {
        Box::new(self.services.iter())
    }
    fn staged(&self) -> Each<'_, &NamespacedHostname> {
        Box::new(self.staged.iter())
    }
    fn policies(&self) -> Each<'_, &Policy> {
        Box::new(self.policies.iter())
    }
    fn endpoints<'a>(&'a self, _: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>> {
        Box::new(self.workloads.iter().map(|workload| EndpointView {
            uid: &workload.uid,
            ports: &self.ports,
            status: Health::Healthy,
        }))
    }
}

impl Source for Live {
    fn pin(&self) -> Arc<dyn View> {
        Arc::clone(&self.0) as Arc<dyn View>
    }
    fn certificates(&self) -> Each<'_, CertificateView> {
        let pem = PemView {
            pem: "PEM".into(),
            serial: "99".into(),
            valid_from: "2026-01-01T00:00:00Z".into(),
            expires: "2026-01-02T00:00:00Z".into(),
        };
        Box::new(std::iter::once(CertificateView {
            identity: "spiffe://a/ns/b/sa/c".into(),
            state: "Available".into(),
            chain: vec![pem],
            roots: Vec::new(),
        }))
    }
    fn pods(&self) -> Option<Each<'_, PodView<'_>>> {
        let open = ConnectionView {
            src: "10.1.0.9:41000".into(),
            original_dst: None,
            actual_dst: "10.1.0.5:8080".into(),
            protocol: "HBONE",
        };
        Some(Box::new(std::iter::once(PodView {
            uid: "u1".into(),
            name: "cart-1".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
            reason: None,
            connections: Some(Connections {
                inbound: Box::new(std::iter::once(open)),
                outbound: Box::new(std::iter::empty()),
            }),
        })))
    }
    fn rejected(&self) -> Vec<(String, String)> {
        vec![("bad".into(), "why".into())]
    }
    fn config(&self) -> Value {
        json!({"proxyMode": "Shared"})
    }
    fn static_config(&self) -> Arc<dyn View> {
        Arc::new(World::default())
    }
    fn istio_version(&self) -> String {
        "1.31.0".to_owned()
    }
}

/// A mesh of so many workloads.
pub(crate) fn source(workloads: usize) -> Arc<dyn Source> {
    let name = |number| format!("workload-{number:06}");
    let workloads = (0..workloads).map(|number| workload(&name(number))).collect();
    Arc::new(Live(Arc::new(World { workloads, ..world() })))
}

/// The chunks of a dump, and how often the writer let others run meanwhile.
async fn chunks(world: World, query: &str) -> (Vec<Bytes>, usize) {
    let (out, mut from) = mpsc::channel(1);
    let mut writer = Box::pin(write(Arc::new(Live(Arc::new(world))), Filter::from_query(query), out));
    let (mut all, mut pauses) = (Vec::new(), 0);
    loop {
        let ended =
            std::future::poll_fn(|cx| std::task::Poll::Ready(writer.as_mut().poll(cx).is_ready())).await;
        all.extend(from.try_recv());
        if ended {
            return (all, pauses);
        }
        pauses += 1;
        tokio::task::yield_now().await;
    }
}

async fn dump(query: &str) -> Value {
    serde_json::from_slice(&chunks(world(), query).await.0.concat()).unwrap()
}

#[tokio::test]
async fn the_keys_are_those_that_istioctl_reads() {
    let dump = dump("").await;
    for key in ["certificates", "policies", "services", "workloads"] {
        assert!(dump[key].is_array(), "{key} is not an array");
    }
    assert_eq!(dump["workloads"][0]["protocol"], "HBONE");
    assert_eq!(dump["workloads"][0]["workloadIps"][0], "10.1.0.5");
    assert!(dump["workloads"][0].get("waypoint").is_none());
    assert_eq!(dump["services"][0]["vips"][0], "net1/10.96.0.7");
    assert_eq!(dump["services"][0]["endpoints"]["c1//Pod/shop/cart-1"]["port"]["80"], 8080);
    assert_eq!(dump["services"][0]["subjectAltNames"], json!([]));
    let staged = &dump["stagedServices"]["shop/later.shop.svc.cluster.local"];
    assert_eq!(staged["c1//Pod/shop/cart-1"]["status"], "Healthy");
    assert_eq!(dump["policies"][0]["rules"][0][0][0]["principals"][0]["Exact"], "td/ns/a/sa/b");
    assert_eq!(dump["certificates"][0]["certChain"][0]["pem"], "UEVN");
    assert_eq!(dump["staticConfig"], json!({"workloads": [], "services": [], "policies": []}));
    assert_eq!(dump["version"]["istioVersion"], "1.31.0");
    let revision = dump["version"]["gitRevision"].as_str().unwrap();
    assert!(revision.len() > 7, "a commit, or why it is not known: {revision}");
    assert!(dump["version"]["rustVersion"].as_str().unwrap().starts_with("rustc 1."));
    assert_eq!(dump["workloadState"]["u1"]["state"], "Up");
    assert_eq!(dump["workloadState"]["u1"]["connections"]["inbound"][0]["originalDst"], Value::Null);
}

#[tokio::test]
async fn streamed_json_equals_pretty_printed_json() {
    let text = String::from_utf8(chunks(world(), "").await.0.concat()).unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text, serde_json::to_string_pretty(&whole).unwrap() + "\n");
    let empty = String::from_utf8(chunks(world(), "kind=none").await.0.concat()).unwrap();
    assert_eq!(empty, "{}\n");
}

#[tokio::test]
async fn a_filter_narrows_the_dump() {
    assert_eq!(dump("kind=workloads&namespace=other").await, json!({"workloads": []}));
    assert_eq!(dump("kind=workloads&namespace=sh%6fp").await["workloads"][0]["name"], "cart-1");
    assert_eq!(dump("kind=certificates&namespace=other").await, json!({"certificates": []}));
    assert_eq!(dump("kind=certificates&namespace=b&name=c").await["certificates"][0]["state"], "Available");
    assert_eq!(dump("kind=workloadState&name=cart-1").await["workloadState"]["u1"]["state"], "Up");
    assert_eq!(dump("kind=workloads&namespace=&name=").await["workloads"][0]["name"], "cart-1");
    assert_eq!(dump("kind=workloadState&name=cart-2").await, json!({"workloadState": {}}));
}

#[tokio::test]
async fn many_objects_are_written_in_order_and_in_small_chunks() {
    const ALL: usize = 5000;
    let mut rng = 7_usize;
    let mut names: Vec<_> = (0..ALL).map(|number| format!("{number:06}")).collect();
    for at in (1..ALL).rev() {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        names.swap(at, (rng >> 33) % (at + 1));
    }
    let world = World { workloads: names.iter().map(|name| workload(name)).collect(), ..world() };
    // All workloads, and all of them again as endpoints of the one service.
    let (chunks, pauses) = chunks(world, "").await;
    assert!(chunks.iter().all(|chunk| chunk.len() < 20 << 10), "a chunk is too long");
    assert!(pauses >= chunks.len(), "others ran only {pauses} times");
    let dump: Value = serde_json::from_slice(&chunks.concat()).unwrap();
    let found = dump["workloads"].as_array().unwrap();
    assert!(found.len() == ALL && found.is_sorted_by_key(|workload| workload["uid"].as_str().unwrap()));
    assert_eq!(dump["services"][0]["endpoints"].as_object().unwrap().len(), ALL);
}
