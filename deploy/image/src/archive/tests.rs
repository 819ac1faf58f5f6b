use std::collections::BTreeMap;
use std::io::Read as _;

use super::*;
use crate::reference;

const TIME: u64 = 1_700_000_000;

fn tree() -> Tree {
    let mut tree = crate::tree::base();
    tree.programs(b"agent".to_vec(), b"plugin".to_vec()).unwrap();
    tree.file(&format!("usr/share/doc/{}/LICENSE", "long".repeat(40)), 0o644, b"terms".to_vec());
    tree
}

fn config() -> ImageConfig {
    ImageConfig::new(crate::TARGET, &Commit { revision: "abc".to_owned(), time: TIME }).unwrap()
}

/// The files of a written archive, and the digest that was reported.
fn archive(folder: &Path) -> (BTreeMap<String, Vec<u8>>, String) {
    let path = folder.join("isthmus.tar");
    let digest = write(&path, &tree(), &config(), &reference::parse("isthmus", "1.2").unwrap()).unwrap();
    (files(&std::fs::read(path).unwrap()), digest)
}

fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type() == EntryType::Regular {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
    }
    found
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = &files[&format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())];
    assert_eq!(sha256(bytes), digest, "a blob's name is its digest");
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn both_indices_lead_to_the_same_layer() {
    let folder = tempfile::tempdir().unwrap();
    let (files, digest) = archive(folder.path());
    assert_eq!(parsed(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = parsed(&files["index.json"]);
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], digest.as_str());
    assert_eq!(described["platform"]["architecture"], "amd64");
    assert_eq!(described["annotations"]["io.containerd.image.name"], "docker.io/library/isthmus:1.2");
    let manifest = parsed(blob(&files, described));
    let config = parsed(blob(&files, &manifest["config"]));
    let packed = blob(&files, &manifest["layers"][0]);
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut layer).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([sha256(&layer)]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/isthmus"]));
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    let docker = &parsed(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"], json!(["isthmus:1.2"]));
    assert_eq!(&files[docker["Layers"][0].as_str().unwrap()], packed);
    assert_eq!(parsed(&files[docker["Config"].as_str().unwrap()]), config);
    assert_eq!(files.len(), 6, "nothing else is in it: {:?}", files.keys());
}

#[test]
fn the_layer_belongs_to_root_and_has_one_time() {
    let layer = pack(Vec::new(), &tree(), TIME).unwrap();
    let mut seen = BTreeMap::new();
    for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, TIME));
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        seen.insert(path, (header.mode().unwrap(), entry.link_name().unwrap().map(|to| to.into_owned())));
    }
    assert_eq!(seen["tmp/"].0, 0o1777);
    assert_eq!(seen["usr/local/bin/isthmus"].0, 0o755);
    assert_eq!(seen["usr/local/bin/ztunnel"].1.as_deref(), Some(Path::new("isthmus")));
    assert!(seen.keys().any(|path| path.len() > 150), "a name beyond the header's field is kept whole");
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(archive(one.path()), archive(other.path()));
    let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("isthmus.tar")).unwrap();
    assert_eq!(read(&one), read(&other));
}

#[test]
fn an_architecture_without_a_name_is_refused() {
    let commit = Commit { revision: String::new(), time: 0 };
    assert!(ImageConfig::new("riscv64gc-unknown-linux-musl", &commit).is_err());
    assert_eq!(ImageConfig::new("aarch64-unknown-linux-musl", &commit).unwrap().architecture, "arm64");
}
