//! One delta stream, without the stream: requests and new views in, responses out. What the client has is known from
//! what it said at the start and from what was sent; a rejected resource is not sent again until it changes.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::type_url;

use crate::translate::view::{Group, Resources, View};

/// The subscription that means everything.
const WILDCARD: &str = "*";

/// One client's subscriptions.
#[derive(Debug)]
pub(crate) struct Session {
    /// The client's node: the workloads there are of interest to it without being asked for.
    node: Option<String>,
    subscriptions: BTreeMap<&'static str, Subscription>,
    nonces: u64,
}

/// One type's subscription.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client has, by name and version.
    held: BTreeMap<String, String>,
    /// Resources of the responses that are neither accepted nor rejected yet, by nonce.
    pending: BTreeMap<String, Vec<String>>,
}

/// What a request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// The first of its type, or one that changes what is subscribed to.
    Subscribed,
    /// The client has taken a response.
    Accepted,
    /// The client has not, with its reason and what the response carried.
    Rejected { message: String, resources: Vec<String> },
    /// A type that is not served here.
    UnknownType,
}

// === impl Session ===

impl Session {
    /// A session of a client on a node.
    pub(crate) fn new(node: Option<String>) -> Self {
        Self { node, subscriptions: BTreeMap::new(), nonces: 0 }
    }

    /// Takes a request; says what it was and what is to be answered.
    pub(crate) fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        view: &View,
    ) -> (RequestOutcome, Option<DeltaDiscoveryResponse>) {
        let Some(type_url) = known_type(&request.type_url) else {
            return (RequestOutcome::UnknownType, None);
        };
        let is_first = !self.subscriptions.contains_key(type_url);
        let subscription = self.subscriptions.entry(type_url).or_default();
        let pending = subscription.pending.remove(&request.response_nonce);
        let mut forced = BTreeSet::new();
        if is_first {
            subscription.held = request.initial_resource_versions.into_iter().collect();
            subscription.wildcard = request.resource_names_subscribe.is_empty();
        }
        let changes =
            !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                subscription.wildcard = true;
            } else {
                forced.insert(name.clone());
                subscription.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                subscription.wildcard = false;
            } else if subscription.names.remove(&name) {
                subscription.held.remove(&name);
            }
        }
        let outcome = match (request.error_detail, pending) {
            (Some(error), pending) => {
                RequestOutcome::Rejected { message: error.message, resources: pending.unwrap_or_default() }
            }
            (None, Some(_)) if !changes => RequestOutcome::Accepted,
            _ => RequestOutcome::Subscribed,
        };
        let response = (is_first || changes).then(|| self.push(type_url, view, &forced));
        // A client must be answered for what it asks by name and at the start, even if there is nothing for it.
        let response = response.filter(|response| is_first || !forced.is_empty() || !is_empty(response));
        (outcome, response.map(|response| self.sent(type_url, response)))
    }

    /// What the client is to be told because the view has changed.
    pub(crate) fn changed(&mut self, view: &View) -> Vec<DeltaDiscoveryResponse> {
        let types: Vec<&'static str> = self.subscriptions.keys().copied().collect();
        let mut pushes = Vec::new();
        for type_url in types {
            let response = self.push(type_url, view, &BTreeSet::new());
            if !is_empty(&response) {
                pushes.push(self.sent(type_url, response));
            }
        }
        pushes
    }

    /// Notes that a response goes out, which the client will answer.
    fn sent(&mut self, type_url: &'static str, response: DeltaDiscoveryResponse) -> DeltaDiscoveryResponse {
        let names = response.resources.iter().map(|resource| resource.name.clone()).collect();
        let subscription = self.subscriptions.entry(type_url).or_default();
        subscription.pending.insert(response.nonce.clone(), names);
        response
    }

    /// How many responses the client has neither accepted nor rejected yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.subscriptions.values().map(|subscription| subscription.pending.len()).sum()
    }

    /// The difference between what the client should have and what it has. `forced` is sent in any case.
    fn push(
        &mut self,
        type_url: &'static str,
        view: &View,
        forced: &BTreeSet<String>,
    ) -> DeltaDiscoveryResponse {
        let resources = if type_url == type_url::ADDRESS { &view.addresses } else { &view.policies };
        let node = self.node.as_deref();
        let subscription = self.subscriptions.entry(type_url).or_default();
        let wanted = subscription.wanted(resources, node);
        let forced_names: BTreeSet<String> = forced.iter().flat_map(|name| resources.lookup(name)).collect();
        let mut removed: Vec<String> =
            subscription.held.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        let unknown = forced.iter().filter(|name| resources.lookup(name).is_empty());
        removed.extend(unknown.filter(|name| !subscription.held.contains_key(*name)).cloned());
        subscription.held.retain(|name, _| wanted.contains(name));
        let mut sent = Vec::new();
        for resource in wanted.iter().filter_map(|name| resources.get(name)) {
            let has = subscription.held.get(&resource.name) == Some(&resource.version);
            if !has || forced_names.contains(&resource.name) {
                subscription.held.insert(resource.name.clone(), resource.version.clone());
                sent.push((**resource).clone());
            }
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources: sent,
            type_url: type_url.to_owned(),
            nonce,
            removed_resources: removed,
        }
    }
}

impl Subscription {
    fn wanted(&self, resources: &Resources, node: Option<&str>) -> BTreeSet<String> {
        if self.wildcard {
            return resources.all().keys().cloned().collect();
        }
        let mut wanted: BTreeSet<String> =
            self.names.iter().flat_map(|name| resources.lookup(name)).collect();
        if let Some(node) = node {
            wanted.extend(resources.group(&Group::Node(node.to_owned())).cloned());
        }
        wanted
    }
}

fn is_empty(response: &DeltaDiscoveryResponse) -> bool {
    response.resources.is_empty() && response.removed_resources.is_empty()
}

fn known_type(type_url: &str) -> Option<&'static str> {
    [type_url::ADDRESS, type_url::AUTHORIZATION].into_iter().find(|known| *known == type_url)
}

#[cfg(test)]
mod tests;
