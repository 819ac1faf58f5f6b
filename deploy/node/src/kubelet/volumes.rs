//! Volumes: folders below the pod's own, at the containers' mount paths. A program finds them relative to its working
//! folder (`./var/run/secrets/…`), since all pods of the world share one file system.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Node;
use super::spec::{NamedSource, Pod, Source, TokenSource, Volume};

/// As Kubernetes: a token of an hour unless more is asked for.
const TOKEN_SECONDS: u64 = 3600;

/// Tokens that must be written again before they expire.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<(TokenSource, PathBuf, Instant)>);

/// Fills every volume. Returns the tokens among them.
pub(super) async fn write(node: &Node, pod: &Pod, root: &Path) -> anyhow::Result<Tokens> {
    let mut tokens = Tokens::default();
    for container in &pod.spec.containers {
        for mount in &container.volume_mounts {
            let volume = pod.spec.volumes.iter().find(|volume| volume.name == mount.name);
            let volume =
                volume.with_context(|| format!("container {}: no volume {}", container.name, mount.name))?;
            let folder = below(root, &mount.mount_path);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            fill(node, pod, volume, &folder, &mut tokens)
                .await
                .with_context(|| format!("volume {}", volume.name))?;
        }
    }
    Ok(tokens)
}

async fn fill(
    node: &Node,
    pod: &Pod,
    volume: &Volume,
    folder: &Path,
    tokens: &mut Tokens,
) -> anyhow::Result<()> {
    let empty = volume.empty_dir.is_some() || volume.host_path.is_some();
    match (&volume.config_map, &volume.secret, &volume.projected) {
        (Some(source), _, _) => config_map(node, pod, source, folder).await,
        (_, Some(source), _) => secret(node, pod, source, folder).await,
        (_, _, Some(projected)) => {
            for source in &projected.sources {
                project(node, pod, source, folder, tokens).await?;
            }
            Ok(())
        }
        _ if empty => Ok(()),
        _ => bail!("its sort is not supported here"),
    }
}

async fn project(
    node: &Node,
    pod: &Pod,
    source: &Source,
    folder: &Path,
    tokens: &mut Tokens,
) -> anyhow::Result<()> {
    if let Some(map) = &source.config_map {
        config_map(node, pod, map, folder).await?;
    }
    if let Some(source) = &source.service_account_token {
        let file = below(folder, &source.path);
        let renew = token(node, pod, source, &file).await?;
        tokens.0.push((source.clone(), file, renew));
    }
    Ok(())
}

/// Asks for a token and writes it; returns when the next one is due, at four fifths of its life.
async fn token(node: &Node, pod: &Pod, source: &TokenSource, file: &Path) -> anyhow::Result<Instant> {
    let life = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let meta = &pod.metadata;
    let mut spec = json!({
        "expirationSeconds": life,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid},
    });
    if let Some(audience) = &source.audience {
        spec["audiences"] = json!([audience]);
    }
    let token = node.client.token(&meta.namespace, pod.account(), spec).await?;
    replace(file, token.as_bytes())?;
    Ok(Instant::now() + Duration::from_secs(life) * 4 / 5)
}

impl Tokens {
    /// When the next one is due; never when there is none.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(_, _, renew)| *renew).min()
    }

    /// Renews what is due. What fails is tried again soon.
    pub(super) async fn renew(&mut self, node: &Node, pod: &Pod) {
        let now = Instant::now();
        for (source, file, renew) in self.0.iter_mut().filter(|(_, _, renew)| *renew <= now) {
            *renew = match token(node, pod, source, file).await {
                Ok(next) => next,
                Err(error) => {
                    let pod = &pod.metadata.name;
                    tracing::warn!(pod, error = format!("{error:#}"), "the token was not renewed");
                    now + Duration::from_secs(10)
                }
            };
        }
    }
}

async fn config_map(node: &Node, pod: &Pod, source: &NamedSource, folder: &Path) -> anyhow::Result<()> {
    let found = object(node, pod, "configmaps", &source.name, source.optional).await?;
    for (key, value) in &found {
        replace(&below(folder, key), value.as_str().unwrap_or_default().as_bytes())?;
    }
    Ok(())
}

async fn secret(node: &Node, pod: &Pod, source: &NamedSource, folder: &Path) -> anyhow::Result<()> {
    let found = object(node, pod, "secrets", &source.secret_name, source.optional).await?;
    for (key, value) in &found {
        let value = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
        replace(&below(folder, key), &value.with_context(|| format!("key {key} is not base64"))?)?;
    }
    Ok(())
}

/// The `data` of a ConfigMap or Secret of the pod's namespace.
async fn object(
    node: &Node,
    pod: &Pod,
    plural: &str,
    name: &str,
    optional: bool,
) -> anyhow::Result<Map<String, Value>> {
    let path = format!("/api/v1/namespaces/{}/{plural}/{name}", pod.metadata.namespace);
    match node.client.get(&path).await? {
        Some(object) => Ok(object["data"].as_object().cloned().unwrap_or_default()),
        None if optional => Ok(Map::new()),
        None => bail!("there is no {path}"),
    }
}

/// Whoever reads meanwhile sees the old content or the new.
fn replace(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let temp = file.with_extension("new");
    fs::write(&temp, content)
        .and_then(|()| fs::rename(&temp, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// A path inside a folder, whatever the path says.
fn below(folder: &Path, path: &str) -> PathBuf {
    let inside = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    inside.fold(folder.to_owned(), |at, part| at.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_folder() {
        assert_eq!(below(Path::new("/pod"), "/var/run/x"), Path::new("/pod/var/run/x"));
        assert_eq!(below(Path::new("/pod"), "../../etc/x"), Path::new("/pod/etc/x"));
    }
}
