//! What CNI ADD said about the sandboxes of this node, on disk, so that a restarted node role knows the network
//! namespace of a pod none of whose processes it sees. A record is evidence only while its file names the very namespace
//! of then: the kernel's cookie decides, or on old kernels the inode that the runtime's mount keeps.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;
use serde::{Deserialize, Serialize};

/// Name of the folder in the run directory.
const FOLDER: &str = "sandboxes";
/// Changes at each boot, after which cookies and inode numbers start again.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The records of this node.
#[derive(Debug)]
pub(crate) struct SandboxRecords {
    folder: PathBuf,
}

/// One sandbox.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SandboxRecord {
    /// Where the namespace can be opened.
    path: PathBuf,
    boot: String,
    cookie: Option<u64>,
    dev: u64,
    ino: u64,
}

impl SandboxRecord {
    fn of(path: &Path, netns: &Netns) -> Self {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let id = netns.id();
        Self { path: path.to_owned(), boot, cookie: netns.cookie(), dev: id.dev, ino: id.ino }
    }
}

impl SandboxRecords {
    /// The records in a run directory.
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join(FOLDER) }
    }

    /// Records the namespace of a pod, replacing that of an earlier sandbox.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, uid: &PodUid, path: &Path, netns: &Netns) -> io::Result<()> {
        let file = self.file(uid).ok_or(io::ErrorKind::InvalidFilename)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let text = serde_json::to_vec(&SandboxRecord::of(path, netns)).map_err(io::Error::other)?;
        let new = file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, file)
    }

    /// The namespace of a pod, if its record still holds.
    pub(crate) fn open(&self, uid: &PodUid) -> Option<Netns> {
        let text = fs::read(self.file(uid)?).ok()?;
        let record: SandboxRecord = serde_json::from_slice(&text).ok()?;
        let netns = Netns::open(&record.path).ok()?;
        // Without cookies a path in /proc proves nothing: process IDs are reused as inode numbers are.
        let lasting =
            record.cookie.is_some() || !record.path.components().any(|part| part.as_os_str() == "ns");
        (lasting && SandboxRecord::of(&record.path, &netns) == record).then_some(netns)
    }

    /// Removes a pod's record, if there is one.
    pub(crate) fn remove(&self, uid: &PodUid) {
        if let Some(file) = self.file(uid)
            && let Err(error) = fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "record of a deleted pod's sandbox not removed");
        }
    }

    /// A UID is a file name only if it cannot be a path.
    fn file(&self, uid: &PodUid) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let name = uid.as_str();
        (!name.is_empty() && name.bytes().all(plain)).then(|| self.folder.join(format!("{name}.json")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_while_the_file_names_the_same_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let records = SandboxRecords::new(dir.path());
        let (here, uid) = (Netns::current().unwrap(), PodUid::from("u-1"));
        let path = Path::new("/proc/thread-self/ns/net");
        assert!(records.open(&uid).is_none());
        records.write(&uid, path, &here).unwrap();
        assert_eq!(records.open(&uid).map(|netns| netns.id()), here.cookie().map(|_| here.id()));
        // After a reboot numbers start again.
        let file = dir.path().join("sandboxes/u-1.json");
        let text = fs::read_to_string(&file).unwrap();
        let boot = SandboxRecord::of(path, &here).boot;
        fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
        assert!(records.open(&uid).is_none());
        records.remove(&uid);
        records.remove(&uid);
        assert!(!file.exists());
    }

    #[test]
    fn a_uid_that_is_a_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let records = SandboxRecords::new(dir.path());
        for uid in ["", "../x", "a/b", "."] {
            assert!(
                records.write(&uid.into(), Path::new("/x"), &Netns::current().unwrap()).is_err(),
                "{uid}"
            );
        }
    }
}
