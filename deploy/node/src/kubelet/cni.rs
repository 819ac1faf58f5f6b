//! The runtime's side of CNI: the plugins of a configuration list, called one after the other as the specification
//! says: variables in the environment, configuration and the previous result on standard input, the result or an error
//! on standard output.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A plugin that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration list.
#[derive(Debug)]
pub(super) struct Chain {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
    bin: PathBuf,
}

/// Which sandbox a call is about.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) container: String,
    pub(super) netns: PathBuf,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
}

impl Chain {
    /// Reads a configuration list.
    pub(super) fn read(file: &Path, bin: &Path) -> anyhow::Result<Self> {
        let bad = |what: &str| anyhow!("{}: {what}", file.display());
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let list: Value =
            serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", file.display()))?;
        let plugins = list["plugins"].as_array().ok_or_else(|| bad("plugins is no list"))?;
        let plugins = plugins.iter().map(|plugin| {
            let plugin = plugin.as_object().ok_or_else(|| bad("a plugin is no object"))?;
            plugin.get("type").and_then(Value::as_str).ok_or_else(|| bad("a plugin has no type"))?;
            Ok(plugin.clone())
        });
        Ok(Self {
            name: list["name"].as_str().ok_or_else(|| bad("name is no string"))?.to_owned(),
            version: list["cniVersion"].as_str().ok_or_else(|| bad("cniVersion is no string"))?.to_owned(),
            plugins: plugins.collect::<anyhow::Result<_>>()?,
            bin: bin.to_owned(),
        })
    }

    /// Calls every plugin with ADD; the last one's result is the chain's.
    pub(super) async fn add(&self, target: &Target) -> anyhow::Result<Value> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            let said = self.call("ADD", plugin, target, &result).await?;
            result = serde_json::from_slice(&said).with_context(|| {
                format!("{} gave no JSON: {}", kind(plugin), String::from_utf8_lossy(&said))
            })?;
        }
        Ok(result)
    }

    /// Calls every plugin with DEL, last first. All are called, whatever the others say.
    pub(super) async fn del(&self, target: &Target, result: &Value) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for plugin in self.plugins.iter().rev() {
            let told = self.call("DEL", plugin, target, result).await.map(drop);
            outcome = outcome.and(told);
        }
        outcome
    }

    async fn call(
        &self,
        command: &str,
        plugin: &Map<String, Value>,
        target: &Target,
        previous: &Value,
    ) -> anyhow::Result<Vec<u8>> {
        let kind = kind(plugin);
        let call = async {
            let mut child = self.command(command, kind, target).spawn().context("cannot be started")?;
            let input = serde_json::to_vec(&self.input(plugin, previous))?;
            if let Some(mut stdin) = child.stdin.take() {
                // A plugin may end without reading everything; what it says counts.
                let _ = stdin.write_all(&input).await;
            }
            child.wait_with_output().await.context("cannot be waited for")
        };
        let output = match tokio::time::timeout(PATIENCE, call).await {
            Err(_) => bail!("CNI {command} {kind}: the plugin did not end within {PATIENCE:?}"),
            Ok(output) => output.with_context(|| format!("CNI {command} {kind}"))?,
        };
        let notes = String::from_utf8_lossy(&output.stderr);
        notes.lines().for_each(|line| tracing::info!(pod = target.pod, plugin = kind, "{line}"));
        if !output.status.success() {
            bail!("CNI {command} {kind}: {}", explain(&output.stdout, output.status));
        }
        Ok(output.stdout)
    }

    fn command(&self, command: &str, kind: &str, target: &Target) -> Command {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            target.namespace, target.pod, target.container, target.uid
        );
        let variables: [(&str, OsString); 6] = [
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", target.container.clone().into()),
            ("CNI_NETNS", target.netns.clone().into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_ARGS", args.into()),
            ("CNI_PATH", self.bin.clone().into()),
        ];
        let mut process = Command::new(self.bin.join(kind));
        process.envs(variables).kill_on_drop(true);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process
    }

    /// The plugin's own configuration, completed as the specification says.
    fn input(&self, plugin: &Map<String, Value>, previous: &Value) -> Map<String, Value> {
        let mut input = plugin.clone();
        input.insert("cniVersion".into(), self.version.clone().into());
        input.insert("name".into(), self.name.clone().into());
        if !previous.is_null() {
            input.insert("prevResult".into(), previous.clone());
        }
        input
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// What a failed plugin said, in one line.
fn explain(stdout: &[u8], status: std::process::ExitStatus) -> String {
    let Ok(error) = serde_json::from_slice::<Value>(stdout) else {
        return format!("{status} without an error object: {}", String::from_utf8_lossy(stdout));
    };
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    match text("details").as_str() {
        "" => format!("{} (code {})", text("msg"), error["code"]),
        details => format!("{}: {details} (code {})", text("msg"), error["code"]),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"first","x":1},{"type":"second"}]}"#;

    /// A script cannot be started while a process that another test is just starting still has it open.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// Plugins as shell scripts that write down what they were given.
    fn chain(scripts: &[(&str, &str)]) -> (tempfile::TempDir, Chain, Target) {
        let temp = tempfile::tempdir().unwrap();
        for (name, body) in scripts {
            let path = temp.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{body}\n", temp.path().display())).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let file = temp.path().join("list");
        std::fs::write(&file, LIST).unwrap();
        let chain = Chain::read(&file, temp.path()).unwrap();
        let target = Target {
            container: "c1".into(),
            netns: "/n/1".into(),
            namespace: "sample".into(),
            pod: "p".into(),
            uid: "u".into(),
        };
        (temp, chain, target)
    }

    #[tokio::test]
    async fn each_plugin_gets_the_result_of_the_one_before() {
        let _one = ONE_AT_A_TIME.lock().await;
        let (temp, chain, target) = chain(&[
            ("first", r#"cat > in1; echo "$CNI_COMMAND $CNI_NETNS $CNI_ARGS" > env1; echo '{"ips":[1]}'"#),
            ("second", "cat > in2; echo '{\"ips\":[2]}'"),
        ]);
        assert_eq!(chain.add(&target).await.unwrap().to_string(), r#"{"ips":[2]}"#);
        let read = |name: &str| std::fs::read_to_string(temp.path().join(name)).unwrap();
        assert_eq!(read("in1"), r#"{"type":"first","x":1,"cniVersion":"1.0.0","name":"net"}"#);
        assert!(read("in2").ends_with(r#""prevResult":{"ips":[1]}}"#));
        assert_eq!(
            read("env1").trim(),
            "ADD /n/1 IgnoreUnknown=1;K8S_POD_NAMESPACE=sample;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u"
        );
    }

    #[tokio::test]
    async fn an_error_object_becomes_one_line_and_ends_the_chain() {
        let _one = ONE_AT_A_TIME.lock().await;
        let (temp, chain, target) = chain(&[
            ("first", r#"echo '{"code":11,"msg":"no","details":"because"}'; exit 1"#),
            ("second", "touch called; echo '{}'"),
        ]);
        let error = chain.add(&target).await.unwrap_err().to_string();
        assert_eq!(error, "CNI ADD first: no: because (code 11)");
        assert!(!temp.path().join("called").exists());
    }

    #[tokio::test]
    async fn every_plugin_is_told_of_the_end_last_first() {
        let _one = ONE_AT_A_TIME.lock().await;
        let (temp, chain, target) =
            chain(&[("first", "echo first >> order"), ("second", "echo second >> order; exit 3")]);
        let error = chain.del(&target, &Value::Null).await.unwrap_err().to_string();
        assert!(error.contains("DEL second: exit status: 3"), "{error}");
        assert_eq!(std::fs::read_to_string(temp.path().join("order")).unwrap(), "second\nfirst\n");
    }
}
