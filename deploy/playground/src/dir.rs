//! The world's folder: where it is, the lock on it, and the name of every file in it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The folder of one world. All sockets in it must fit into 108 bytes, so the names are short.
#[derive(Debug, Clone)]
pub(crate) struct Dir(PathBuf);

/// The lock on the folder; the kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

const LOCK: &str = "lock";

impl Dir {
    /// The folder at this path, as a process of the world is told.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Picks the user's folder and makes it. Must be called outside of the user namespace, where the user has a name.
    pub(crate) fn of_user(chosen: Option<PathBuf>) -> anyhow::Result<Self> {
        let uid = nix::unistd::geteuid().as_raw();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| owned(dir, uid));
        let path = match (chosen, runtime) {
            (Some(chosen), _) => std::path::absolute(chosen)?,
            (None, Some(runtime)) => runtime.join("isthmus-playground"),
            (None, None) => std::env::temp_dir().join(format!("isthmus-playground-{uid}")),
        };
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make {}", path.display()))?;
            }
            _ if !owned(&path, uid) => bail!("{} is not a folder of user {uid}; use --dir", path.display()),
            _ => {}
        }
        Ok(Self(path))
    }

    /// Takes the folder, waiting a little for a world that is just dying.
    pub(crate) fn lock(&self, wait: Duration) -> anyhow::Result<Lock> {
        let file =
            File::create(self.0.join(LOCK)).with_context(|| format!("cannot lock {}", self.0.display()))?;
        let deadline = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("a world is up in {}; end it with `playground down`", self.0.display());
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", self.0.display()));
                }
            }
        }
    }

    /// Removes what an earlier world left. Only for the holder of the lock.
    pub(crate) fn clean(&self, _: &Lock) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let removed = match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false if entry.file_name() == LOCK => Ok(()),
                false => fs::remove_file(entry.path()),
            };
            removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        }
        Ok(())
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Facts about the running world.
    pub(crate) fn world(&self) -> PathBuf {
        self.0.join("world.json")
    }

    /// The file that holds a component's or pod's output.
    pub(crate) fn log(&self, cluster: &str, name: &str) -> PathBuf {
        self.logs().join(cluster).join(format!("{name}.log"))
    }

    /// All logs, one folder per cluster.
    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// Keys and certificates of a cluster.
    pub(crate) fn pki(&self, cluster: &str) -> PathBuf {
        self.0.join("pki").join(cluster)
    }

    /// Administrator's access to a cluster's API server.
    pub(crate) fn kubeconfig(&self, cluster: &str) -> PathBuf {
        self.0.join("kube").join(format!("{cluster}.yaml"))
    }

    /// The token in that kubeconfig.
    pub(crate) fn admin_token(&self, cluster: &str) -> PathBuf {
        self.0.join("kube").join(format!("{cluster}.token"))
    }

    /// A node's own folder.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }

    /// Where the node role and the CNI plugin of a node meet.
    pub(crate) fn cni_run_dir(&self, node: &str) -> PathBuf {
        self.node(node).join("cni")
    }

    /// The namespace files of all pods; a mount that only the world sees.
    pub(crate) fn netns(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// What the kubelets of a cluster record about their pods.
    pub(crate) fn pods(&self, cluster: &str) -> PathBuf {
        self.all_pods().join(cluster)
    }

    /// The records of all pods, one folder per cluster.
    pub(crate) fn all_pods(&self) -> PathBuf {
        self.0.join("pods")
    }

    /// CNI plugins by their types' names.
    pub(crate) fn cni_bin(&self) -> PathBuf {
        self.0.join("cni-bin")
    }

    /// Manifests that the world was built from are read before it is entered; this is what it leaves for `logs`.
    pub(crate) fn world_log(&self) -> PathBuf {
        self.logs().join("world.log")
    }
}

/// A real folder (no link) of this user.
fn owned(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_world_has_the_folder_at_a_time_and_the_next_finds_it_empty() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::of_user(Some(temp.path().join("world"))).unwrap();
        let lock = dir.lock(Duration::ZERO).unwrap();
        assert!(dir.lock(Duration::ZERO).unwrap_err().to_string().contains("playground down"));
        fs::create_dir_all(dir.netns()).unwrap();
        fs::write(dir.world(), "{}").unwrap();
        dir.clean(&lock).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK]);
        drop(lock);
        dir.lock(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_link_is_not_taken_for_a_folder() {
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path(), &link).unwrap();
        assert!(Dir::of_user(Some(link)).unwrap_err().to_string().contains("--dir"));
    }
}
