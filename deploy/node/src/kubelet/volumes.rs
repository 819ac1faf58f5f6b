//! Volumes: folders below the pod's own, at the containers' mount paths. A program finds them relative to its working
//! folder (`./var/run/secrets/…`), since all pods of the world share one file system.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Pod, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Node;
use super::spec::PodExt;

/// As Kubernetes: a token of an hour unless more is asked for.
const TOKEN_SECONDS: i64 = 3600;

/// Tokens that must be written again before they expire.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<(ServiceAccountTokenProjection, PathBuf, Instant)>);

/// Fills every volume. Returns the tokens among them.
pub(super) async fn write(node: &Node, pod: &Pod, root: &Path) -> anyhow::Result<Tokens> {
    let mut tokens = Tokens::default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    for container in pod.containers() {
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.into_iter().flatten().find(|volume| volume.name == mount.name);
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
        (Some(map), _, _) => config_map(node, pod, &map.name, map.optional, folder).await,
        (_, Some(source), _) => {
            let name = source.secret_name.as_deref().unwrap_or_default();
            secret(node, pod, name, source.optional, folder).await
        }
        (_, _, Some(projected)) => {
            for source in projected.sources.iter().flatten() {
                project(node, pod, source, folder, tokens).await?;
            }
            Ok(())
        }
        _ if empty => Ok(()),
        _ => bail!("volumes of this kind are not supported by the playground"),
    }
}

async fn project(
    node: &Node,
    pod: &Pod,
    source: &VolumeProjection,
    folder: &Path,
    tokens: &mut Tokens,
) -> anyhow::Result<()> {
    if let Some(map) = &source.config_map {
        config_map(node, pod, &map.name, map.optional, folder).await?;
    }
    if let Some(source) = &source.service_account_token {
        let file = below(folder, &source.path);
        let renew = token(node, pod, source, &file).await?;
        tokens.0.push((source.clone(), file, renew));
    }
    Ok(())
}

/// Asks for a token and writes it; returns when the next one is due, at four fifths of its life.
async fn token(
    node: &Node,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    file: &Path,
) -> anyhow::Result<Instant> {
    let life = source.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let spec = TokenRequestSpec {
        audiences: Vec::from_iter(source.audience.clone()),
        expiration_seconds: Some(life),
        bound_object_ref: Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
    };
    let token = node.client.token(pod.namespace(), pod.service_account(), spec).await?;
    replace(file, token.as_bytes())?;
    let life = Duration::from_secs(life.try_into().unwrap_or_default());
    Ok(Instant::now() + life * 4 / 5)
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
                    let (pod, error) = (pod.name(), format!("{error:#}"));
                    tracing::warn!(
                        pod,
                        error,
                        "cannot renew the pod's service account token, trying again in 10s"
                    );
                    now + Duration::from_secs(10)
                }
            };
        }
    }
}

async fn config_map(
    node: &Node,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
    folder: &Path,
) -> anyhow::Result<()> {
    let found: Option<ConfigMap> = object(node, pod, "configmaps", name, optional).await?;
    for (key, value) in found.and_then(|map| map.data).unwrap_or_default() {
        replace(&below(folder, &key), value.as_bytes())?;
    }
    Ok(())
}

async fn secret(
    node: &Node,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
    folder: &Path,
) -> anyhow::Result<()> {
    let found: Option<Secret> = object(node, pod, "secrets", name, optional).await?;
    for (key, value) in found.and_then(|secret| secret.data).unwrap_or_default() {
        replace(&below(folder, &key), &value.0)?;
    }
    Ok(())
}

/// A ConfigMap or Secret of the pod's namespace.
async fn object<T: DeserializeOwned>(
    node: &Node,
    pod: &Pod,
    plural: &str,
    name: &str,
    optional: Option<bool>,
) -> anyhow::Result<Option<T>> {
    let path = format!("/api/v1/namespaces/{}/{plural}/{name}", pod.namespace());
    let found = node.client.get_as(&path).await?;
    if found.is_none() && optional != Some(true) {
        bail!("there is no {path}");
    }
    Ok(found)
}

/// Replaces a file as a whole: a reader sees the old content or the new.
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
