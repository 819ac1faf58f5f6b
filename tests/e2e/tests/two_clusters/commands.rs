//! The commands that a user types beside a world that is up.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::playground::{Playground, succeeded};

/// Every command that prints, to a reader that is gone.
const PRINTING: [&[&str]; 6] = [
    &["logs"],
    &["logs", "east/istiod"],
    &["status"],
    &["status", "--json"],
    &[
        "exec",
        "east/sleep",
        "--",
        "/proc/self/exe",
        "request",
        "http://helloworld.sample:5000/hello",
        "-n",
        "3",
    ],
    &["kube", "east", "--", "true"],
];

pub(crate) fn commands_bear_a_closed_pipe_and_reach_the_api_servers() -> Result<()> {
    let world = Playground::up(&[])?;
    for args in PRINTING {
        for closed in ["out", "both"] {
            let mut command = world.command(args[0])?;
            let mut child = command.args(&args[1..]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            drop(child.stdout.take());
            let error = child.stderr.take().context("stderr")?;
            let error = (closed == "out").then(|| std::io::read_to_string(error)).transpose()?;
            let status = child.wait()?;
            ensure!(status.success(), "{args:?} with {closed} closed: {status}: {error:?}");
        }
    }
    // As the status says, and with what is in the kubeconfig: the API server's TLS port answers on the world's network.
    let status = succeeded("status", &world.command("status")?.output()?)?;
    ensure!(status.contains("playground kube east -- kubectl get pods -A"), "{status}");
    let probe = "server=$(sed -n 's|.*server: https://||p' \"$KUBECONFIG\"); \
                 exec 3<>\"/dev/tcp/${server%:*}/${server##*:}\" && echo \"reached $server\"";
    for cluster in ["east", "west"] {
        let output = world.command("kube")?.args([cluster, "--", "bash", "-c", probe]).output()?;
        ensure!(succeeded("kube", &output)?.starts_with("reached "), "{output:?}");
    }
    let nowhere = world.command("kube")?.args(["north", "--", "true"]).output()?;
    ensure!(!nowhere.status.success() && String::from_utf8_lossy(&nowhere.stderr).contains("east, west"));
    Ok(())
}
