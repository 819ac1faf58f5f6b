//! What a kubelet writes down about each pod for the commands that look at the world from outside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// One pod. The file is replaced as a whole whenever something changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of its cluster.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Name of its node.
    pub node: String,
    /// Empty until the sandbox has one.
    pub ip: String,
    /// A process of the pod as the world numbers them, while one runs.
    pub pid: Option<u32>,
    /// `status.phase`.
    pub phase: String,
    /// Whether every container is ready.
    pub ready: bool,
    /// Why it does not run, in words; empty when it does.
    pub message: String,
}

impl Record {
    /// Writes it down. A failure is only logged: the pod matters more.
    pub(super) fn write(&self, folder: &Path) {
        let path = Self::path(folder, &self.uid);
        let temp = path.with_extension("tmp");
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&temp, text))
            .and_then(|()| fs::rename(&temp, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "cannot write the pod's record");
        }
    }

    /// Forgets the pod.
    pub(super) fn remove(&self, folder: &Path) {
        // Nothing was written if this fails.
        let _ = fs::remove_file(Self::path(folder, &self.uid));
    }

    /// All pods of all clusters, sorted.
    pub fn all(root: &Path) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for cluster in fs::read_dir(root).with_context(|| format!("no pods in {}", root.display()))? {
            for file in fs::read_dir(cluster?.path())? {
                let path = file?.path();
                if path.extension().is_some_and(|extension| extension == "json") {
                    // It may vanish at any moment.
                    all.extend(
                        fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok()),
                    );
                }
            }
        }
        let key = |record: &Self| (record.cluster.clone(), record.namespace.clone(), record.name.clone());
        all.sort_by_key(key);
        Ok(all)
    }

    /// The pod that `<cluster>/<beginning of its name>` means; running ones first.
    pub fn find(root: &Path, wanted: &str) -> anyhow::Result<Self> {
        let Some((cluster, name)) = wanted.split_once('/') else {
            bail!("{wanted} is not <cluster>/<pod>");
        };
        let all = Self::all(root)?;
        let mut fitting: Vec<_> =
            all.iter().filter(|pod| pod.cluster == cluster && pod.name.starts_with(name)).collect();
        fitting.sort_by_key(|pod| (pod.name != name, pod.pid.is_none()));
        match fitting.first() {
            Some(found) => Ok((*found).clone()),
            None => {
                let names: Vec<_> = all.iter().map(|pod| format!("{}/{}", pod.cluster, pod.name)).collect();
                bail!("there is no pod {wanted}; there are: {}", names.join(", "))
            }
        }
    }

    fn path(folder: &Path, uid: &str) -> PathBuf {
        folder.join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_the_name_finds_the_running_pod() {
        let temp = tempfile::tempdir().unwrap();
        let (root, east) = (temp.path(), temp.path().join("east"));
        fs::create_dir_all(&east).unwrap();
        let pod = |name: &str, pid| Record {
            cluster: "east".into(),
            name: name.into(),
            uid: name.into(),
            pid,
            ..Record::default()
        };
        pod("sleep-a", None).write(&east);
        pod("sleep-b", Some(7)).write(&east);
        assert_eq!(Record::find(root, "east/sleep").unwrap().name, "sleep-b");
        assert_eq!(Record::find(root, "east/sleep-a").unwrap().name, "sleep-a");
        let error = Record::find(root, "west/sleep").unwrap_err().to_string();
        assert_eq!(error, "there is no pod west/sleep; there are: east/sleep-a, east/sleep-b");
        pod("sleep-b", None).remove(&east);
        assert_eq!(Record::all(root).unwrap().len(), 1);
    }
}
