//! Network configurations as values: which of the files in the CNI folder is the cluster's network, and what must be
//! written and removed so that our plugin is its last step. Pure; it must not know where the files are.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::entry::{Entry, PLUGIN};

/// The file of a stand-alone configuration, which a meta plugin reads.
const STANDALONE: &str = "YYY-istio-cni.conf";
/// Version of a configuration that states none.
const VERSION: &str = "0.3.1";
/// Name of a network that states none.
const NETWORK: &str = "k8s-pod-network";

/// The files of the CNI folder that may be network configurations, by name: what a container runtime would read, in its
/// order.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Where our entry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file of the cluster's network; `None`: the first valid one.
    pub name: Option<String>,
    /// How our entry is added to it.
    pub kind: Kind,
    /// The file that [`Kind::Owned`] writes; another kind removes it.
    pub owned: String,
}

/// How our entry is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As the last plugin of the cluster's own list.
    Chained,
    /// In a file of its own that a meta plugin (multus) calls.
    Standalone,
    /// In a list of our own that sorts first, with a copy of the cluster's plugins: the cluster's CNI may rewrite its own
    /// file, and no pod can start with that alone.
    Owned,
}

/// What must change in the folder. Empty when everything is as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files to write, whole.
    pub writes: Vec<Write>,
    /// Files to remove after that.
    pub removes: Vec<String>,
    /// The file of the cluster's network; `None` for a stand-alone configuration.
    pub network: Option<String>,
    /// Further valid networks, which the container runtime ignores too.
    pub ignored: Vec<String>,
    /// Files that are no network configuration, each with the reason.
    pub invalid: Vec<(String, String)>,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub name: String,
    /// Its whole text.
    pub text: String,
    /// The file whose mode it gets; without one it gets the default.
    pub mode_of: Option<String>,
}

/// Why nothing can be installed yet. The cluster's network is installed by others, so the answer is to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoNetwork {
    /// There is no network at all.
    #[error(
        "no network configuration yet (*.conf or *.conflist): the cluster's CNI has not been installed on this node{0}"
    )]
    None(Invalid),
    /// The configured file does not exist.
    #[error("the network configuration {0}, as CNI_CONF_NAME names it, does not exist yet")]
    Missing(String),
    /// The configured file is not usable.
    #[error("the network configuration {name}, as CNI_CONF_NAME names it, is invalid: {reason}")]
    Invalid {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A list of our own would not be the first one.
    #[error(
        "{owned} does not sort before {network}, so the container runtime would not use it: set \
         ISTIO_OWNED_CNI_CONFIG_FILENAME to a name that does"
    )]
    NotFirst {
        /// Our file.
        owned: String,
        /// The cluster's.
        network: String,
    },
}

/// The files that were passed over, as part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invalid(pub Vec<(String, String)>);

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, reason)| write!(f, "; {name} is invalid: {reason}"))
    }
}

/// A network configuration.
enum Network {
    /// A list of plugins.
    List(Map<String, Value>),
    /// One plugin, in a file of the older form.
    Single(Map<String, Value>),
}

/// The cluster's network among the files.
struct Choice {
    name: String,
    network: Network,
    ignored: Vec<(String, Network)>,
    invalid: Vec<(String, String)>,
}

/// What must change so that our plugin is called for every pod.
///
/// # Errors
/// When there is no network to be added to yet.
pub fn plan(files: &Files, layout: &Layout, entry: &Entry) -> Result<Plan, NoNetwork> {
    match layout.kind {
        Kind::Standalone => Ok(standalone(files, layout, entry)),
        Kind::Chained => chained(files, layout, entry),
        Kind::Owned => owned(files, layout, entry),
    }
}

/// What must change so that nothing calls our plugin any more: its binary goes next.
#[must_use]
pub fn removal(files: &Files, layout: &Layout) -> Plan {
    let mut plan = Plan::default();
    let own = match layout.kind {
        Kind::Standalone => Some(standalone_name(layout)),
        _ => Some(layout.owned.as_str()),
    };
    for (name, text) in files {
        if Some(name.as_str()) == own && mentions(text) {
            plan.removes.push(name.clone());
            continue;
        }
        match parse(name, text) {
            Ok(Network::List(list)) if has_entry(&list) => {
                let list = without_entry(list);
                if plugins(&list).is_empty() {
                    plan.removes.push(name.clone());
                } else {
                    plan.writes.push(write(name, Value::Object(list), Some(name)));
                }
            }
            Ok(Network::Single(single)) if is_ours(&single) => plan.removes.push(name.clone()),
            _ => {}
        }
    }
    plan
}

fn standalone_name(layout: &Layout) -> &str {
    layout.name.as_deref().unwrap_or(STANDALONE)
}

fn standalone(files: &Files, layout: &Layout, entry: &Entry) -> Plan {
    let name = standalone_name(layout);
    let mut wanted = Map::from_iter([("cniVersion".to_owned(), json!(VERSION))]);
    wanted.extend(entry.to_json());
    let mut plan = Plan::default();
    plan.write_unless_equal(files, name, Value::Object(wanted), Some(name));
    plan
}

fn chained(files: &Files, layout: &Layout, entry: &Entry) -> Result<Plan, NoNetwork> {
    let choice = choose(files, layout)?;
    let list_name = match (&choice.network, choice.name.strip_suffix(".conf")) {
        (Network::Single(_), Some(stem)) => format!("{stem}.conflist"),
        _ => choice.name.clone(),
    };
    let mut plan = Plan::of(&choice);
    plan.write_unless_equal(files, &list_name, with_entry(choice.network, entry), Some(&choice.name));
    if list_name != choice.name {
        plan.removes.push(choice.name);
        plan.network = Some(list_name);
    }
    // Left by an earlier setting, it would be the first of all and hide what is written here.
    if files.get(&layout.owned).is_some_and(|text| mentions(text)) {
        plan.removes.push(layout.owned.clone());
    }
    Ok(plan)
}

fn owned(files: &Files, layout: &Layout, entry: &Entry) -> Result<Plan, NoNetwork> {
    let choice = choose(files, layout)?;
    if layout.owned >= choice.name {
        return Err(NoNetwork::NotFirst { owned: layout.owned.clone(), network: choice.name });
    }
    let mut plan = Plan::of(&choice);
    // An entry in the cluster's own file is left by an earlier setting.
    if let Network::List(list) = &choice.network
        && has_entry(list)
    {
        let stripped = Value::Object(without_entry(list.clone()));
        plan.writes.push(write(&choice.name, stripped, Some(&choice.name)));
    }
    plan.write_unless_equal(files, &layout.owned, with_entry(choice.network, entry), Some(&layout.owned));
    Ok(plan)
}

/// Finds the cluster's network: the configured file under either of its two endings, else the first valid one.
fn choose(files: &Files, layout: &Layout) -> Result<Choice, NoNetwork> {
    if let Some(wanted) = &layout.name {
        let other = wanted.strip_suffix(".conf").map(|stem| format!("{stem}.conflist"));
        let other = other.or_else(|| wanted.strip_suffix(".conflist").map(|stem| format!("{stem}.conf")));
        let found = [Some(wanted.clone()), other].into_iter().flatten().find(|name| files.contains_key(name));
        let name = found.ok_or_else(|| NoNetwork::Missing(wanted.clone()))?;
        let network = parse(&name, &files[&name]);
        let network = network.map_err(|reason| NoNetwork::Invalid { name: name.clone(), reason })?;
        return Ok(Choice { name, network, ignored: Vec::new(), invalid: Vec::new() });
    }
    let (mut chosen, mut ignored, mut invalid) = (None, Vec::new(), Vec::new());
    for (name, text) in files.iter().filter(|(name, _)| is_configuration(name) && **name != layout.owned) {
        match parse(name, text) {
            Err(reason) => invalid.push((name.clone(), reason)),
            // Our plugin alone is no network.
            Ok(network) if network.is_only_ours() => {}
            Ok(network) if chosen.is_none() => chosen = Some((name.clone(), network)),
            Ok(network) => ignored.push((name.clone(), network)),
        }
    }
    match chosen {
        Some((name, network)) => Ok(Choice { name, network, ignored, invalid }),
        None => Err(NoNetwork::None(Invalid(invalid))),
    }
}

/// Whether a container runtime reads the file. Temporary files have another ending.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    [".conf", ".conflist"].iter().any(|ending| name.ends_with(ending))
}

fn parse(name: &str, text: &[u8]) -> Result<Network, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(object) = value else { return Err("not a JSON object".to_owned()) };
    let list = object.contains_key("plugins");
    if name.ends_with(".conflist") && !list {
        return Err("no list of plugins".to_owned());
    }
    if !list {
        let named = object.get("type").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        return if named { Ok(Network::Single(object)) } else { Err("no type".to_owned()) };
    }
    let Some(Value::Array(all)) = object.get("plugins") else {
        return Err("plugins is not a list".to_owned());
    };
    if all.is_empty() || !all.iter().all(Value::is_object) {
        return Err("plugins is not a list of at least one object".to_owned());
    }
    Ok(Network::List(object))
}

impl Network {
    fn is_only_ours(&self) -> bool {
        match self {
            Self::Single(single) => is_ours(single),
            Self::List(list) => plugins(list).iter().all(|one| one.as_object().is_some_and(is_ours)),
        }
    }
}

/// The list with our entry as its last one. Of a single plugin, name and version become the list's.
fn with_entry(network: Network, entry: &Entry) -> Value {
    let mut list = match network {
        Network::List(list) => without_entry(list),
        Network::Single(mut single) => {
            // The name decides where address management keeps its leases, so it must not change.
            let name = single.get("name").cloned().unwrap_or_else(|| json!(NETWORK));
            let version = single.shift_remove("cniVersion").unwrap_or_else(|| json!(VERSION));
            Map::from_iter([
                ("name".to_owned(), name),
                ("cniVersion".to_owned(), version),
                ("plugins".to_owned(), Value::Array(vec![Value::Object(single)])),
            ])
        }
    };
    if let Some(Value::Array(all)) = list.get_mut("plugins") {
        all.push(Value::Object(entry.to_json()));
    }
    Value::Object(list)
}

fn without_entry(mut list: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Array(all)) = list.get_mut("plugins") {
        all.retain(|one| !one.as_object().is_some_and(is_ours));
    }
    list
}

fn has_entry(list: &Map<String, Value>) -> bool {
    plugins(list).iter().any(|one| one.as_object().is_some_and(is_ours))
}

fn plugins(list: &Map<String, Value>) -> &[Value] {
    list.get("plugins").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_ours(plugin: &Map<String, Value>) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// Whether a file has our entry, in a list or alone.
fn mentions(text: &[u8]) -> bool {
    match parse("", text) {
        Ok(Network::List(list)) => has_entry(&list),
        Ok(Network::Single(single)) => is_ours(&single),
        Err(_) => false,
    }
}

fn write(name: &str, value: Value, mode_of: Option<&str>) -> Write {
    let text = serde_json::to_string_pretty(&value).unwrap_or_default();
    Write { name: name.to_owned(), text: format!("{text}\n"), mode_of: mode_of.map(str::to_owned) }
}

impl Plan {
    /// What follows from the choice alone: an entry in a network that is not used is left from when it was.
    fn of(choice: &Choice) -> Self {
        let stale = choice.ignored.iter().filter_map(|(name, network)| match network {
            Network::List(list) if has_entry(list) => {
                Some(write(name, Value::Object(without_entry(list.clone())), Some(name)))
            }
            _ => None,
        });
        Self {
            writes: stale.collect(),
            network: Some(choice.name.clone()),
            ignored: choice.ignored.iter().map(|(name, _)| name.clone()).collect(),
            invalid: choice.invalid.clone(),
            ..Self::default()
        }
    }

    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.writes.is_empty() && self.removes.is_empty()
    }

    fn write_unless_equal(&mut self, files: &Files, name: &str, wanted: Value, mode_of: Option<&str>) {
        let there = files.get(name).and_then(|text| serde_json::from_slice::<Value>(text).ok());
        if there.as_ref() != Some(&wanted) {
            self.writes.push(write(name, wanted, mode_of));
        }
    }
}

#[cfg(test)]
mod tests;
