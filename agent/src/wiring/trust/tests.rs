use std::path::PathBuf;
use std::time::Duration;

use isthmus_identity::KeyExchange;
use isthmus_kit::pki::Ca;
use isthmus_model::{TrustDomain, TrustDomains};
use isthmus_state::Options as StateOptions;
use tempfile::TempDir;

use super::*;

struct World {
    dir: TempDir,
    config: TrustConfig,
    state: State,
    registry: Registry,
    tasks: Tasks,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = TrustConfig {
            crl: Some(dir.path().join("crl")),
            key_exchange: KeyExchange::Preferred,
            mesh_config: dir.path().join("mesh"),
            trust_domain: Some("td".into()),
            aliases: vec!["env".into()],
        };
        let state = State::new(StateOptions::default());
        Self { dir, config, state, registry: Registry::default(), tasks: Tasks::new("test") }
    }

    fn write(&self, name: &str, text: &str) {
        // As a mounted ConfigMap changes: a rename over the old name.
        let new: PathBuf = self.dir.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.dir.path().join(name)).unwrap();
    }

    fn start(&self) -> Trust {
        start(&self.config, &self.state, &self.registry, &self.tasks)
    }

    fn metric(&self, line: &str) -> bool {
        self.registry.encode().unwrap().lines().any(|found| found == line)
    }

    /// Bounded wait for the next turns of the followers; the clock is paused, so their pauses cost nothing.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("{what} never happened:\n{}", self.registry.encode().unwrap());
    }
}

fn aliases(names: &[&str]) -> TrustDomains {
    TrustDomains::new(Some("td".into()), names.iter().map(|name| TrustDomain::from(*name)))
}

fn kind(trust: &Trust) -> String {
    match &*trust.revocations() {
        Revocations::None => "none".to_owned(),
        Revocations::Listed(lists) => format!("{} listed", lists.len()),
        Revocations::Unknown(why) => format!("unknown: {why}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_crl_revokes_nothing_and_a_bad_one_keeps_the_last_good() {
    let world = World::new();
    let trust = world.start();
    assert_eq!(kind(&trust), "none");
    let (one, two) = (Ca::new("one").unwrap().crl(&[]).unwrap(), Ca::new("two").unwrap().crl(&[]).unwrap());
    world.write("crl", &one);
    world.until("a list", || kind(&trust) == "1 listed").await;
    world.write("crl", "garbage");
    let rejected = "isthmus_trust_file_rejected{file=\"crl\"} 1";
    world.until("its rejection", || world.metric(rejected)).await;
    assert_eq!(kind(&trust), "1 listed");
    assert!(world.metric("isthmus_trust_file_loads_total{file=\"crl\",result=\"error\"} 1"));
    world.write("crl", &format!("{one}{two}"));
    world.until("both lists", || kind(&trust) == "2 listed").await;
    assert!(!world.metric(rejected));
}

/// `rm` and then a new file must not be a window in which revoked peers are accepted.
#[tokio::test(start_paused = true)]
async fn removing_the_crl_revokes_no_less_until_an_empty_one_says_so() {
    let world = World::new();
    let ca = Ca::new("one").unwrap();
    world.write("crl", &ca.crl(&[]).unwrap());
    let trust = world.start();
    assert_eq!(kind(&trust), "1 listed");
    std::fs::remove_file(world.dir.path().join("crl")).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(kind(&trust), "1 listed");
    world.write("crl", "garbage");
    world.until("a rejection", || world.metric("isthmus_trust_file_rejected{file=\"crl\"} 1")).await;
    assert_eq!(
        kind(&trust),
        "1 listed",
        "what stands after the loss is the last good list, not an unknown one"
    );
    world.write("crl", "");
    world.until("none", || kind(&trust) == "none").await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_crl_at_start_denies_all_until_it_is_valid() {
    let world = World::new();
    world.write("crl", "garbage");
    let trust = world.start();
    assert!(kind(&trust).starts_with("unknown: ") && kind(&trust).contains("crl"), "{}", kind(&trust));
    std::fs::remove_file(world.dir.path().join("crl")).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(kind(&trust).starts_with("unknown: "), "removing it is not making it valid");
    world.write("crl", &Ca::new("one").unwrap().crl(&[]).unwrap());
    world.until("a list", || kind(&trust) == "1 listed").await;
}

#[tokio::test(start_paused = true)]
async fn without_a_path_revocation_is_not_checked() {
    let mut world = World::new();
    world.config.crl = None;
    let trust = world.start();
    assert_eq!((kind(&trust).as_str(), trust.is_revocable()), ("none", false));
}

#[tokio::test(start_paused = true)]
async fn the_mesh_config_is_followed_and_a_bad_one_changes_nothing() {
    let world = World::new();
    let trust = world.start();
    let known = || (**world.state.load().trust_domains()).clone();
    assert_eq!(known(), aliases(&["env"]));
    world.write("mesh", "trustDomain: td\ntrustDomainAliases: [old]\n");
    world.until("an alias", || known() == aliases(&["env", "old"])).await;
    assert_eq!(trust.domains(), known(), "both sides go by the same");
    world.write("mesh", "trustDomainAliases: 7");
    let rejected = "isthmus_trust_file_rejected{file=\"mesh_config\"} 1";
    world.until("its rejection", || world.metric(rejected)).await;
    assert_eq!(known(), aliases(&["env", "old"]));
    std::fs::remove_file(world.dir.path().join("mesh")).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(known(), aliases(&["env", "old"]), "its loss changes nothing either");
    world.write("mesh", "trustDomainAliases: []");
    world.until("no more alias", || known() == aliases(&["env"])).await;
}
