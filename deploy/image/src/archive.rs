//! The archive: an OCI image layout (github.com/opencontainers/image-spec, image-layout.md) in a tar file, with the
//! `manifest.json` that `docker load` and kind read beside it. Equal trees and configurations give equal bytes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::commit::Commit;
use crate::reference::Reference;
use crate::tree::{Entry, PROGRAM, Tree};

/// What the image is, for those who find it in a registry.
const DESCRIPTION: &str =
    "Node agent, node role with its CNI plugin, and east-west gateway of an ambient mesh";

/// The image's configuration, as far as it is not the same for all.
#[derive(Debug, Clone)]
pub(crate) struct ImageConfig {
    /// As Go names it.
    architecture: &'static str,
    date: String,
    revision: String,
    time: u64,
}

impl ImageConfig {
    /// That of a commit, built for a target.
    ///
    /// # Errors
    /// For an architecture that images have no name for here.
    pub(crate) fn new(target: &str, commit: &Commit) -> Result<Self> {
        let architecture = match target.split('-').next() {
            Some("x86_64") => "amd64",
            Some("aarch64") => "arm64",
            _ => bail!("{target}: images are built for x86_64 and aarch64"),
        };
        Ok(Self { architecture, date: commit.date(), revision: commit.revision.clone(), time: commit.time })
    }

    fn json(&self, layer: &str) -> Value {
        json!({
            "created": self.date,
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                // Without an argument it is the agent; the charts' `args: [proxy, ztunnel]` follow it.
                "Entrypoint": [format!("/{PROGRAM}")],
                "Env": ["PATH=/usr/local/bin"],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": "isthmus",
                    "org.opencontainers.image.description": DESCRIPTION,
                    "org.opencontainers.image.created": self.date,
                    "org.opencontainers.image.revision": self.revision,
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created": self.date, "created_by": "isthmus-image"}],
        })
    }
}

/// Writes the archive and returns the image's digest, `sha256:…`: that of its manifest.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, tree: &Tree, config: &ImageConfig, name: &Reference) -> Result<String> {
    let (entries, digest) = entries(tree, config, name)?;
    // A reader never sees half an archive.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let file = BufWriter::new(File::create(partial).with_context(|| format!("{}", partial.display()))?);
    let mut file = pack(file, &entries, config.time)?;
    file.flush()?;
    std::fs::rename(partial, path).with_context(|| format!("{}", path.display()))?;
    Ok(digest)
}

/// The archive's files, and the image's digest.
fn entries(tree: &Tree, config: &ImageConfig, name: &Reference) -> Result<(Tree, String)> {
    let layer = pack(Vec::new(), tree, config.time)?;
    let layer_id = sha256(&layer);
    let mut packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    packed.write_all(&layer)?;
    let packed = packed.finish()?;

    let mut all = Tree::default();
    let mut blob = |bytes: Vec<u8>, kind: &str| -> Value {
        let (digest, size) = (sha256(&bytes), bytes.len());
        all.file(&blob_path(&digest), 0o644, bytes);
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size})
    };
    let layer = blob(packed, "layer.v1.tar+gzip");
    let config_blob = blob(serde_json::to_vec(&config.json(&layer_id))?, "config.v1+json");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_blob,
        "layers": [layer],
    });
    let mut manifest = blob(serde_json::to_vec(&manifest)?, "manifest.v1+json");
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = json!({"architecture": config.architecture, "os": "linux"});
    manifest["annotations"] =
        json!({"io.containerd.image.name": name.full(), "org.opencontainers.image.ref.name": name.tag});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    let path = |blob: &Value| blob_path(blob["digest"].as_str().unwrap_or_default());
    let docker =
        json!([{"Config": path(&config_blob), "RepoTags": [name.to_string()], "Layers": [path(&layer)]}]);
    all.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    all.file("index.json", 0o644, serde_json::to_vec(&index)?);
    all.file("manifest.json", 0o644, serde_json::to_vec(&docker)?);
    Ok((all, digest))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar file of a tree: in the order of paths, of root, with one time for all.
fn pack<W: std::io::Write>(to: W, tree: &Tree, time: u64) -> Result<W> {
    let mut archive = Builder::new(to);
    for (path, entry) in &tree.0 {
        let mut header = Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        match entry {
            Entry::Folder(mode) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::File(mode, content) => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Link(to) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, to)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

#[cfg(test)]
mod tests;
