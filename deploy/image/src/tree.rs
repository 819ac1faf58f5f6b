//! The files of the image as a value. Everything belongs to root; a container that runs as another user or with a
//! read-only root needs nothing that is not readable by all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Where documents are.
pub(crate) const DOCUMENTS: &str = "usr/share/doc/isthmus";
/// The agent's program.
pub(crate) const PROGRAM: &str = "usr/local/bin/isthmus";
/// Names by which charts call the same program. `install-cni` selects the role, `ztunnel` is the default's.
const NAMES: [&str; 2] = ["ztunnel", "install-cni"];
/// The plugin, in the folder and under the name from which the installer copies it to the host.
const PLUGIN: &str = "opt/cni/bin/istio-cni";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A folder with its mode.
    Folder(u32),
    /// A file with its mode.
    File(u32, Vec<u8>),
    /// A symbolic link to a name in the same folder.
    Link(String),
}

/// Entries by path, without a leading slash. The order of paths puts each folder before what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Entry>);

/// What is in the image whatever the programs are: the users of the charts, and folders that must exist.
pub(crate) fn base() -> Tree {
    let mut tree = Tree::default();
    // 1337 is the group that the charts run the agent in.
    let passwd = "root:x:0:0:root:/:/sbin/nologin\nisthmus:x:1337:1337:isthmus:/:/sbin/nologin\n\
                  nobody:x:65534:65534:nobody:/:/sbin/nologin\n";
    let group = "root:x:0:\nisthmus:x:1337:\nnobody:x:65534:\n";
    tree.file("etc/passwd", 0o644, passwd.into());
    tree.file("etc/group", 0o644, group.into());
    // Mount points of the charts: a runtime cannot make them below a read-only root of every kind.
    for folder in ["host", "proc", "sys", "dev", "var/run/istio-cni", "var/run/secrets", "var/run/ztunnel"] {
        tree.folder(folder, 0o755);
    }
    tree.folder("tmp", 0o1777);
    tree
}

impl Tree {
    /// Adds the programs.
    ///
    /// # Errors
    /// When one of them is empty.
    pub(crate) fn programs(&mut self, agent: Vec<u8>, plugin: Vec<u8>) -> Result<()> {
        ensure!(!agent.is_empty() && !plugin.is_empty(), "a program is empty");
        self.file(PROGRAM, 0o755, agent);
        self.file(PLUGIN, 0o755, plugin);
        for name in NAMES {
            self.0.insert(format!("usr/local/bin/{name}"), Entry::Link("isthmus".to_owned()));
        }
        Ok(())
    }

    /// Adds our licence, those of what is inside, and the bill of materials.
    ///
    /// # Errors
    /// When the bill cannot be written as JSON.
    pub(crate) fn documents(
        &mut self,
        own: &str,
        third_party: &[(String, String)],
        bill: &serde_json::Value,
    ) -> Result<()> {
        let mut bill = serde_json::to_vec_pretty(bill)?;
        bill.push(b'\n');
        self.file(&format!("{DOCUMENTS}/LICENSE"), 0o644, own.into());
        self.file(&format!("{DOCUMENTS}/sbom.cdx.json"), 0o644, bill);
        for (name, text) in third_party {
            self.file(&format!("{DOCUMENTS}/{name}"), 0o644, text.clone().into());
        }
        Ok(())
    }

    /// Adds a file and the folders above it.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent, 0o755);
        }
        self.0.insert(path.to_owned(), Entry::File(mode, content));
    }

    fn folder(&mut self, path: &str, mode: u32) {
        let parents = path.match_indices('/').map(|(at, _)| path.split_at(at).0.to_owned());
        for parent in parents {
            self.0.entry(parent).or_insert(Entry::Folder(0o755));
        }
        self.0.entry(path.to_owned()).or_insert(Entry::Folder(mode));
    }

    /// Writes it below a folder that must not exist yet.
    ///
    /// # Errors
    /// When the folder exists, or something in it cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir(folder).with_context(|| format!("{}", folder.display()))?;
        for (path, entry) in &self.0 {
            let path = folder.join(path);
            let mode = match entry {
                Entry::Link(to) => {
                    symlink(to, &path)?;
                    continue;
                }
                Entry::Folder(mode) => {
                    fs::create_dir(&path)?;
                    *mode
                }
                Entry::File(mode, content) => {
                    fs::write(&path, content)?;
                    *mode
                }
            };
            // Not at creation, where the umask would take its part.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = base();
        tree.programs(b"agent".to_vec(), b"plugin".to_vec()).unwrap();
        tree.documents("own", &[("THIRD-PARTY".to_owned(), "theirs".to_owned())], &serde_json::json!({}))
            .unwrap();
        tree
    }

    #[test]
    fn every_name_of_the_program_is_there_and_folders_come_first() {
        let tree = tree();
        for name in NAMES {
            assert_eq!(tree.0[&format!("usr/local/bin/{name}")], Entry::Link("isthmus".to_owned()));
        }
        assert_eq!(tree.0[PLUGIN], Entry::File(0o755, b"plugin".to_vec()));
        let mut seen = Vec::new();
        for path in tree.0.keys() {
            if let Some((parent, _)) = path.rsplit_once('/') {
                assert!(seen.contains(&parent), "{path} comes before its folder");
            }
            seen.push(path);
        }
    }

    #[test]
    fn a_tree_on_disk_has_the_modes_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        tree().write(&root).unwrap();
        let mode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode("tmp"), mode(PROGRAM), mode("etc/passwd"), mode("etc")),
            (0o1777, 0o755, 0o644, 0o755)
        );
        assert_eq!(fs::read(root.join("usr/local/bin/ztunnel")).unwrap(), b"agent");
        assert!(tree().write(&root).is_err(), "an existing folder is not mixed with");
    }
}
