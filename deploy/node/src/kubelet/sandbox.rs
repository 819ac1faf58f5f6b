//! A pod's sandbox: a fresh network namespace with a name in the world's namespace folder, set up by the CNI chain.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::Context;
use isthmus_sys::netns::Netns;
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::cni::Target;
use super::processes;
use super::spec::PodExt;
use super::{Folders, Node};

/// A sandbox that is set up. It must be ended with [`Sandbox::end`].
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) netns: Netns,
    pub(super) ip: Ipv4Addr,
    target: Target,
    result: Value,
}

impl Sandbox {
    /// Makes the namespace and runs the chain. After a failure nothing is left: the chain was told with DEL and the
    /// namespace is gone.
    pub(super) async fn create(node: &Node, pod: &Pod, attempt: u32) -> anyhow::Result<Self> {
        let container = format!("{}-{attempt}", pod.uid());
        let path = node.folders.netns.join(format!("cni-{container}"));
        let netns = Netns::create()?;
        name(&netns, &path)?;
        let target = Target {
            container,
            netns: path,
            namespace: pod.namespace().to_owned(),
            pod: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
        };
        processes::add(&Folders::processes(&node.folders.netns), &target.uid, &target.container, &netns)?;
        let made = node.chain.add(&target).await.and_then(|result| Ok((address(&result)?, result)));
        match made {
            Ok((ip, result)) => Ok(Self { netns, ip, target, result }),
            Err(error) => {
                tear_down(node, &target, &Value::Null).await;
                Err(error)
            }
        }
    }

    /// Tells the chain and removes the namespace's name. The namespace itself lives until its last process ends.
    pub(super) async fn end(self, node: &Node) {
        tear_down(node, &self.target, &self.result).await;
    }
}

async fn tear_down(node: &Node, target: &Target, result: &Value) {
    if let Err(error) = node.chain.del(target, result).await {
        tracing::warn!(
            pod = target.pod,
            error = format!("{error:#}"),
            "CNI DEL failed, removing the sandbox anyway"
        );
    }
    processes::remove(&Folders::processes(&node.folders.netns), &target.container);
    let unnamed = umount2(&target.netns, MntFlags::MNT_DETACH)
        .map_err(std::io::Error::from)
        .and_then(|()| fs::remove_file(&target.netns));
    if let Err(error) = unnamed {
        tracing::warn!(path = %target.netns.display(), %error, "cannot unmount the pod's network namespace");
    }
}

/// Mounts a namespace at a path, as container runtimes do.
pub(super) fn name(netns: &Netns, path: &Path) -> anyhow::Result<()> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let open = format!("/proc/self/fd/{}", netns.fd().as_raw_fd());
    mount(Some(Path::new(&open)), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount a network namespace at {}", path.display()))
}

/// The first address of a CNI result.
fn address(result: &Value) -> anyhow::Result<Ipv4Addr> {
    let text =
        result["ips"][0]["address"].as_str().with_context(|| format!("no ips in the CNI result {result}"))?;
    let ip = text.split('/').next().unwrap_or_default();
    ip.parse().with_context(|| format!("{text} in the CNI result is no IPv4 address"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_address_is_the_first_of_the_result() {
        assert_eq!(address(&json!({"ips": [{"address": "10.1.0.4/32"}]})).unwrap().to_string(), "10.1.0.4");
        assert!(address(&json!({})).unwrap_err().to_string().contains("no ips"));
        assert!(address(&json!({"ips": [{"address": "fd00::1/64"}]})).is_err());
    }
}
