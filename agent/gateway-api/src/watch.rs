//! Watches the objects of one Gateway, publishes what it asks to listen for, and writes statuses.
//!
//! What is missing never stops the gateway: kinds that the API server does not have, or that the gateway may not read,
//! count as empty and are named in one log line each; both are looked for again, so that installing the CRDs or granting
//! the permission takes effect without a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt as _};
use isthmus_rt::drain::Watch;
use isthmus_rt::ready::BlockReady;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, discovery};
use serde_json::json;
use tokio::sync::watch::Sender;
use tokio::time::Instant;

use crate::budget::WriteBudget;
use crate::kinds::{GROUP, Kind};
use crate::objects::ObjectName;
use crate::status::StatusPatch;
use crate::store::Objects;
use crate::translate::{Translation, translate};
use crate::{GATEWAY_NAME, Listeners, Settings};

/// For how long changes are gathered.
const QUIET: Duration = Duration::from_millis(50);
/// Pause before kinds are looked for that the API server does not have, and before a failed patch is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// Pause before a kind is read again that could not be: a permission may have been granted.
const REFUSED: Duration = Duration::from_secs(5);
/// Deadline of a patch.
const PATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// What the watch of a kind reports.
enum Change {
    Event(Box<Event<DynamicObject>>),
    /// The kind cannot be read, for this reason.
    Refused(String),
}

type Changes = SelectAll<Pin<Box<dyn Stream<Item = (Kind, Change)> + Send>>>;

/// Which kinds the API server has, and how they are reached.
type Served = BTreeMap<Kind, ApiResource>;

struct Follower {
    client: Client,
    settings: Settings,
    served: Served,
    objects: Objects,
    /// The kinds whose status was refused, to say it once.
    unwritable: BTreeSet<Kind>,
    warned: Vec<String>,
    budget: WriteBudget,
    /// Whether it was logged what the Gateway asks for.
    announced: bool,
    /// When to translate next, if something changed.
    due: Option<Instant>,
}

/// Follows the Gateway until the drain begins. `listeners` is `None` for as long as there is no Gateway of the name.
/// `ready` is released when everything was read, or cannot be.
pub async fn run(
    client: Client,
    settings: Settings,
    listeners: Sender<Option<Listeners>>,
    ready: BlockReady,
    drain: Watch,
) {
    tokio::select! {
        () = follow(client, settings, &listeners, ready) => {}
        () = drain.graceful() => {}
    }
}

async fn follow(
    client: Client,
    settings: Settings,
    listeners: &Sender<Option<Listeners>>,
    ready: BlockReady,
) {
    let mut ready = Some(ready);
    let mut unwritable = BTreeSet::new();
    loop {
        let served = served(&client).await;
        let mut follower = Follower {
            client: client.clone(),
            settings: settings.clone(),
            served,
            objects: Objects::default(),
            unwritable,
            warned: Vec::new(),
            budget: WriteBudget::default(),
            announced: false,
            due: None,
        };
        follower.until_kinds_change(listeners, &mut ready).await;
        unwritable = follower.unwritable;
    }
}

/// Asks which kinds there are until the API server answers.
async fn served(client: &Client) -> Served {
    let mut delay = Duration::from_millis(500);
    loop {
        match ask(client).await {
            Ok(served) => return served,
            Err(error) => tracing::warn!(%error, "cannot ask the API server for its resources, trying again"),
        }
        tokio::time::sleep(delay).await;
        delay = AGAIN.min(delay * 2);
    }
}

async fn ask(client: &Client) -> Result<Served, kube::Error> {
    let mut served: Served =
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, kind.built_in()?))).collect();
    let group = match discovery::group(client, GROUP).await {
        Ok(group) => group,
        Err(kube::Error::Discovery(_)) => return Ok(served),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(served),
        Err(error) => return Err(error),
    };
    // Each at its own most stable version, since not all kinds have the group's preferred one.
    for (resource, _) in group.resources_by_stability() {
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == resource.kind);
        if let Some(kind) = known.filter(|kind| kind.built_in().is_none()) {
            served.insert(kind, resource);
        }
    }
    Ok(served)
}

impl Follower {
    /// Follows all kinds until the API server has other ones.
    async fn until_kinds_change(
        &mut self,
        listeners: &Sender<Option<Listeners>>,
        ready: &mut Option<BlockReady>,
    ) {
        let missing: Vec<Kind> =
            Kind::ALL.into_iter().filter(|kind| !self.served.contains_key(kind)).collect();
        for kind in &missing {
            self.objects.refuse(*kind, "the API server does not have it".to_owned());
            // Routes of TCP are experimental and absent from most clusters.
            let group = GROUP;
            tracing::info!(
                kind = kind.name(),
                "the API server has no such kind in {group}: going on without it (its CRD is not installed)"
            );
        }
        let mut changes = self.changes();
        let mut look = tokio::time::interval_at(Instant::now() + AGAIN, AGAIN);
        self.due = Some(Instant::now());
        loop {
            let due = self.due.filter(|_| self.objects.is_complete());
            tokio::select! {
                change = changes.next() => match change {
                    Some((kind, change)) => self.apply(kind, change),
                    None => return,
                },
                () = at(due) => {
                    self.due = None;
                    self.reconcile(listeners).await;
                    drop(ready.take());
                }
                _ = look.tick(), if !missing.is_empty() => {
                    if ask(&self.client).await.is_ok_and(|now| now.len() != self.served.len()) {
                        return;
                    }
                }
            }
        }
    }

    fn changes(&self) -> Changes {
        let sources =
            self.served.iter().map(|(kind, resource)| source(&self.client, *kind, resource, &self.settings));
        select_all(sources)
    }

    fn apply(&mut self, kind: Kind, change: Change) {
        let changed = match change {
            Change::Event(event) => {
                let complete = self.objects.is_complete();
                self.objects.apply(kind, *event) || complete != self.objects.is_complete()
            }
            Change::Refused(why) => {
                let is_news = self.objects.refuse(kind, why.clone());
                if is_news {
                    tracing::warn!(kind = kind.name(), error = %why, "kind cannot be read: going on without it");
                }
                is_news
            }
        };
        if changed {
            let soon = Instant::now() + QUIET;
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    async fn reconcile(&mut self, listeners: &Sender<Option<Listeners>>) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let Translation { listeners: wanted, patches, warnings } =
            translate(&self.objects, &self.settings, &now);
        let Settings { namespace, name, .. } = &self.settings;
        let changed = *listeners.borrow() != wanted;
        if changed || !self.announced {
            self.announced = true;
            match &wanted {
                Some(wanted) => {
                    let ports: Vec<u16> = wanted.keys().copied().collect();
                    tracing::info!(namespace, gateway = name, ?ports, "listeners of the Gateway");
                }
                None => {
                    tracing::info!(
                        namespace,
                        gateway = name,
                        "no Gateway of this name: serving the settings"
                    );
                }
            }
        }
        if changed {
            listeners.send_replace(wanted);
        }
        for warning in warnings.iter().filter(|warning| !self.warned.contains(warning)) {
            tracing::warn!(namespace, gateway = name, "{warning}");
        }
        self.warned = warnings;
        for patch in patches {
            self.write(patch).await;
        }
    }

    fn may_write(&mut self, kind: Kind, name: &ObjectName) -> bool {
        let Err((again, is_news)) = self.budget.spend(kind, name, Instant::now()) else { return true };
        if is_news {
            tracing::warn!(
                kind = kind.name(),
                namespace = name.namespace,
                name = name.name,
                "status is changed again and again by another controller, or another version of this one: waiting"
            );
        }
        self.due = Some(self.due.map_or(again, |due| due.min(again)));
        false
    }

    /// Writes a status. A conflict needs nothing: the object has changed, and its watch will say how.
    async fn write(&mut self, patch: StatusPatch) {
        let StatusPatch { kind, name, resource_version, status } = patch;
        if !self.may_write(kind, &name) {
            return;
        }
        let Some(resource) = self.served.get(&kind) else { return };
        let api: Api<DynamicObject> = match name.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, resource),
        };
        let body = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"resourceVersion": resource_version}, "status": status,
        });
        let (params, body) = (PatchParams::default(), Patch::Merge(body));
        let written = tokio::time::timeout(PATCH_TIMEOUT, api.patch_status(&name.name, &params, &body)).await;
        let error = match written {
            Ok(Ok(_)) => {
                self.unwritable.remove(&kind);
                return;
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return,
            // The object is gone.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no response in time".to_owned(),
        };
        if self.unwritable.insert(kind) {
            tracing::warn!(
                kind = kind.name(),
                namespace = name.namespace,
                name = name.name,
                error,
                "status not written, trying again (the gateway needs `patch` on `{}/status`)",
                resource.plural
            );
        }
        self.due.get_or_insert_with(|| Instant::now() + AGAIN);
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The watch of one kind, restarted with backoff for ever.
fn source(
    client: &Client,
    kind: Kind,
    resource: &ApiResource,
    settings: &Settings,
) -> Pin<Box<dyn Stream<Item = (Kind, Change)> + Send>> {
    let client = client.clone();
    let own = || Api::namespaced_with(client.clone(), &settings.namespace, resource);
    let config = watcher::Config::default();
    let (api, config): (Api<DynamicObject>, _) = match kind {
        Kind::Gateway => (own(), config.fields(&format!("metadata.name={}", settings.name))),
        Kind::Pod => (own(), config.labels(&format!("{GATEWAY_NAME}={}", settings.name))),
        _ => (Api::all_with(client.clone(), resource), config),
    };
    let events = Box::pin(watcher(api, config).default_backoff());
    Box::pin(futures_util::stream::unfold((events, false), move |(mut events, refused)| async move {
        if refused {
            tokio::time::sleep(REFUSED).await;
        }
        loop {
            match events.next().await? {
                Ok(event) => return Some(((kind, Change::Event(Box::new(event))), (events, false))),
                Err(error) => match refusal(&error) {
                    Some(why) => return Some(((kind, Change::Refused(why)), (events, true))),
                    None => {
                        tracing::warn!(kind = kind.name(), %error, "watch of the API server broken, restarting it");
                    }
                },
            }
        }
    }))
}

/// Why a kind cannot be read, when asking again at once would not help.
fn refusal(error: &watcher::Error) -> Option<String> {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return None;
    };
    matches!(status.code, 401 | 403 | 404 | 405).then(|| status.message.clone())
}
