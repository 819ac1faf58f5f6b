//! The installer as a process, on the folders of a host: flags, readiness, the plugin that it installs, and what SIGTERM
//! leaves. The API server is scripted; the node role beside it is the real one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::kube::{self, Api};
use isthmus_kit::lab::{self, Lan};
use isthmus_kit::probe;
use isthmus_kit::process::Process;
use isthmus_kit::wait::until;
use isthmus_rt::task::Tasks;
use isthmus_sys::nft;
use isthmus_sys::socket::Transparent;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "node-1";
const API: (std::net::Ipv4Addr, u16) = (std::net::Ipv4Addr::LOCALHOST, 6443);
const LIST: &str = r#"{"cniVersion":"1.1.0","name":"k8s","plugins":[{"type":"ptp"},{"type":"portmap"}]}"#;

/// Environment variables.
type Settings<'a> = &'a [(&'a str, &'a str)];

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        the_chart_with_another_image_installs_the_plugin,
        it_is_the_node_role_too_and_cleans_up_at_the_end,
        a_folder_that_cannot_be_written_is_one_clear_line,
        a_bad_value_or_flag_ends_it_before_it_has_any_effect,
    ])
}

/// A node with the folders that the chart mounts.
struct Host {
    lan: Lan,
    api: Api,
    dir: TempDir,
    /// Serve the API.
    _tasks: Tasks,
}

impl Host {
    fn new() -> Result<Self> {
        let (lan, api, tasks, dir) = (Lan::new()?, Api::default(), Tasks::new("api"), tempfile::tempdir()?);
        for folder in ["bin", "net.d", "run", "netns", "zds", "proc", "account"] {
            std::fs::create_dir(dir.path().join(folder))?;
        }
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("net.d/10-ptp.conflist"), LIST)?;
        std::fs::write(at("account/token"), "a-token")?;
        std::fs::write(at("account/ca.crt"), "roots")?;
        std::fs::write(at("kubeconfig"), kube::kubeconfig(&format!("http://{}:{}", API.0, API.1)))?;
        let (listener, _) = lan.sockets().listen(API.into(), Transparent::Never)?;
        api.serve(listener, &tasks);
        api.put("namespaces", kube::namespace("sample", &[]));
        let set = json!({"metadata": {"name": "istio-cni-node", "namespace": "istio-system"},
                         "spec": {"selector": {}, "template": {"spec": {"containers": []}}}});
        api.put("daemonsets", set);
        api.put("nodes", json!({"metadata": {"name": NODE}}));
        Ok(Self { lan, api, dir, _tasks: tasks })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As the chart starts it, but for the places of the folders.
    fn start(&self, args: &[&str], more: &[(&str, &str)]) -> Result<Process> {
        let text = |name: &str| self.path(name).display().to_string();
        let folders = [
            ("MOUNTED_CNI_BIN_DIR", text("bin")),
            ("MOUNTED_CNI_NET_DIR", text("net.d")),
            ("CNI_AGENT_RUN_DIR", text("run")),
            ("CNI_NETNS_DIR", text("netns")),
            ("ZTUNNEL_UDS_ADDRESS", text("zds/z.sock")),
            ("HOST_PROC", text("proc")),
            ("SERVICE_ACCOUNT_DIR", text("account")),
            ("KUBECONFIG", text("kubeconfig")),
        ];
        let port = API.1.to_string();
        let chart = [
            ("NODE_NAME", NODE),
            ("POD_NAME", "istio-cni-node-abcde"),
            ("POD_NAMESPACE", "istio-system"),
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &port),
            ("EXCLUDE_NAMESPACES", "kube-system"),
            ("REPAIR_ENABLED", "true"),
        ];
        let mut env: Vec<(&str, &str)> = chart.to_vec();
        env.extend(folders.iter().map(|(key, value)| (*key, value.as_str())));
        env.extend(more);
        Process::start(&self.lan.node, "isthmus", &[&["install-cni"], args].concat(), &env, "")
    }

    async fn status(&self, path: &str) -> Result<u16> {
        Ok(probe::get(&self.lan.node, "127.0.0.1:8000", path).await?.status)
    }

    async fn ready(&self) -> Result<()> {
        until("readiness", async || self.status("/readyz").await.is_ok_and(|status| status == 200)).await
    }

    fn plugins(&self) -> Result<Vec<String>> {
        let list: Value = serde_json::from_slice(&std::fs::read(self.path("net.d/10-ptp.conflist"))?)?;
        let all = list["plugins"].as_array().context("plugins")?;
        Ok(all.iter().map(|one| one["type"].as_str().unwrap_or_default().to_owned()).collect())
    }

    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path(folder))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

fn the_chart_with_another_image_installs_the_plugin() -> Result<()> {
    lab::block_on(async {
        let host = Host::new()?;
        std::fs::rename(host.path("net.d/10-ptp.conflist"), host.path("later"))?;
        let process =
            host.start(&["--log_output_level=info", "--log_as_json"], &[("AMBIENT_ENABLED", "F")])?;
        process
            .line(&["\"message\":\"the CNI plugin is not installed\"", "no network configuration yet"])
            .await?;
        ensure!(host.status("/readyz").await? == 503 && host.status("/healthz").await? == 200);
        std::fs::rename(host.path("later"), host.path("net.d/10-ptp.conflist"))?;
        host.ready().await?;
        ensure!(host.plugins()? == ["ptp", "portmap", "istio-cni"]);
        let metrics = probe::get(&host.lan.node, "127.0.0.1:15014", "/metrics").await?.body;
        for series in ["istio_cni_installs_total{result=\"SUCCESS\"} 1", "istio_cni_install_ready 1"] {
            ensure!(metrics.lines().any(|line| line == series), "{series} is not in\n{metrics}");
        }

        // The plugin runs from where it was installed, and its lines are in the installer's log.
        let list: Value = serde_json::from_slice(&std::fs::read(host.path("net.d/10-ptp.conflist"))?)?;
        let mut entry = list["plugins"][2].clone();
        entry["cniVersion"] = list["cniVersion"].clone();
        entry["name"] = list["name"].clone();
        entry["plugin_log_level"] = json!("debug");
        let ran = run_plugin(&host.path("bin/istio-cni"), &entry)?;
        ensure!(ran.status.success(), "{ran:?}");
        let text = std::fs::read_to_string(host.path("run/istio-cni.log"))?;
        ensure!(text.contains("sample/sleep"), "{text}");
        process.stop().await?;
        // The DaemonSet is there, so this was an upgrade.
        ensure!(host.plugins()? == ["ptp", "portmap", "istio-cni"]);
        ensure!(host.path("bin/istio-cni").exists() && host.path("run/istio-cni-kubeconfig").exists());
        Ok(())
    })
}

fn run_plugin(program: &Path, entry: &Value) -> Result<std::process::Output> {
    use std::io::Write as _;
    let mut command = std::process::Command::new(program);
    command.env_clear().envs([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/x"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep"),
    ]);
    let piped = std::process::Stdio::piped;
    let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(entry.to_string().as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn it_is_the_node_role_too_and_cleans_up_at_the_end() -> Result<()> {
    lab::block_on(async {
        let host = Host::new()?;
        let ambient = [("AMBIENT_ENABLED", "true"), ("AMBIENT_IPV6", "1"), ("AMBIENT_DNS_CAPTURE", "T")];
        let process = host.start(&[], &ambient)?;
        process.line(&["node role ready"]).await?;
        host.ready().await?;
        ensure!(host.plugins()? == ["ptp", "portmap", "istio-cni"]);
        ensure!(host.path("zds/z.sock").exists() && host.path("run/pluginevent.sock").exists());
        ensure!(!nft::dump(&host.lan.node)?.tables.is_empty(), "rules of the host");

        // Another program rewrites the list: repaired at once.
        std::fs::write(host.path("new"), LIST)?;
        std::fs::rename(host.path("new"), host.path("net.d/10-ptp.conflist"))?;
        until("the repair", async || host.plugins().is_ok_and(|plugins| plugins.len() == 3)).await?;

        // An uninstallation: the DaemonSet is gone.
        host.api.delete("daemonsets", "istio-system/istio-cni-node");
        let lines = process.stop().await?;
        ensure!(
            lines.iter().any(|line| line.text.contains("removing the CNI plugin from this node")),
            "{lines:?}"
        );
        ensure!(host.plugins()? == ["ptp", "portmap"]);
        ensure!(host.names("bin")?.is_empty() && host.names("net.d")? == ["10-ptp.conflist"]);
        ensure!(!host.path("run/istio-cni-kubeconfig").exists());
        ensure!(nft::dump(&host.lan.node)?.tables.is_empty(), "rules of the host are left");
        Ok(())
    })
}

fn a_folder_that_cannot_be_written_is_one_clear_line() -> Result<()> {
    lab::block_on(async {
        let host = Host::new()?;
        let folder = host.path("net.d");
        mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        std::fs::write(folder.join("10-ptp.conflist"), LIST)?;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), &folder, Some("tmpfs"), read_only, None::<&str>)?;
        let process = host.start(&[], &[])?;
        let line = process
            .line(&["the CNI plugin is not installed", "the network configuration cannot be written"])
            .await?;
        ensure!(line.contains("10-ptp.conflist") && line.contains("must be mounted writable"), "{line}");
        ensure!(host.status("/readyz").await? == 503);
        // It is said once, however often it is tried.
        let failed = "istio_cni_installs_total{result=\"CREATE_CNI_CONFIG_FAILURE\"} ";
        let attempts = async || -> Result<u64> {
            let text = probe::get(&host.lan.node, "127.0.0.1:15014", "/metrics").await?.body;
            let value = text.lines().find_map(|line| line.strip_prefix(failed)).context("no series")?;
            Ok(value.parse()?)
        };
        until("the second attempt", async || attempts().await.is_ok_and(|count| count >= 2)).await?;
        let lines = process.lines();
        ensure!(
            lines.iter().filter(|line| line.text.contains("cannot be written")).count() == 1,
            "{lines:?}"
        );
        ensure!(host.names("net.d")? == ["10-ptp.conflist"] && host.plugins()? == ["ptp", "portmap"]);
        process.stop().await?;
        Ok(())
    })
}

fn a_bad_value_or_flag_ends_it_before_it_has_any_effect() -> Result<()> {
    lab::block_on(async {
        let host = Host::new()?;
        let cases: [(&[&str], Settings<'_>, &str); 4] = [
            (&["--cni-konf-name=x"], &[], "unknown flag --cni-konf-name"),
            (&[], &[("AMBIENT_ENABLED", "maybe")], "AMBIENT_ENABLED=\"maybe\" is not a boolean"),
            (&["--kubeconfig-mode=600"], &[], "KUBECONFIG_MODE"),
            (&["--istio-owned-cni-config"], &[], "ISTIO_OWNED_CNI_CONFIG=true needs"),
        ];
        for (args, env, want) in cases {
            let ended = host.start(args, env)?.ended().await?;
            ensure!(ended.status.code() == Some(64), "{ended:?}");
            let lines = ended.stream(true);
            ensure!(lines.len() == 1 && lines[0].contains(want), "{want}: {lines:?}");
        }
        ensure!(host.plugins()? == ["ptp", "portmap"] && host.names("bin")?.is_empty());
        Ok(())
    })
}
