//! What a kubelet writes down about each pod for the commands that look at the world from outside.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::dir::Dir;

/// One pod. The file is replaced as a whole whenever something changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) cluster: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    /// Empty until the sandbox has one.
    pub(crate) ip: String,
    /// A process of the pod as the world numbers them, while one runs.
    pub(crate) pid: Option<u32>,
    pub(crate) phase: String,
    pub(crate) ready: bool,
    /// Why it does not run, in words; empty when it does.
    pub(crate) message: String,
}

impl Record {
    /// Writes it down. A failure is only logged: the pod matters more.
    pub(super) fn write(&self, dir: &Dir) {
        let path = Self::path(dir, &self.cluster, &self.uid);
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
    pub(super) fn remove(&self, dir: &Dir) {
        // Nothing was written if this fails.
        let _ = fs::remove_file(Self::path(dir, &self.cluster, &self.uid));
    }

    /// All pods of all clusters, sorted.
    pub(crate) fn all(dir: &Dir) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        let root = dir.pods("");
        for cluster in fs::read_dir(&root).with_context(|| format!("no pods in {}", root.display()))? {
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
    pub(crate) fn find(dir: &Dir, wanted: &str) -> anyhow::Result<Self> {
        let Some((cluster, name)) = wanted.split_once('/') else {
            bail!("{wanted} is not <cluster>/<pod>");
        };
        let all = Self::all(dir)?;
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

    fn path(dir: &Dir, cluster: &str, uid: &str) -> PathBuf {
        dir.pods(cluster).join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_the_name_finds_the_running_pod() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::at(temp.path().to_owned());
        fs::create_dir_all(dir.pods("east")).unwrap();
        let pod = |name: &str, pid| Record {
            cluster: "east".into(),
            name: name.into(),
            uid: name.into(),
            pid,
            ..Record::default()
        };
        pod("sleep-a", None).write(&dir);
        pod("sleep-b", Some(7)).write(&dir);
        assert_eq!(Record::find(&dir, "east/sleep").unwrap().name, "sleep-b");
        assert_eq!(Record::find(&dir, "east/sleep-a").unwrap().name, "sleep-a");
        let error = Record::find(&dir, "west/sleep").unwrap_err().to_string();
        assert_eq!(error, "there is no pod west/sleep; there are: east/sleep-a, east/sleep-b");
        pod("sleep-b", None).remove(&dir);
        assert_eq!(Record::all(&dir).unwrap().len(), 1);
    }
}
