//! The load of open tools, where they are installed: iperf3 for streams, wrk for requests. They check the bench's own load.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_kit::lab::Host;

use crate::meter::{Meter, Spent, pause};
use crate::server;
use crate::syscalls::Syscalls;
use crate::worlds::World;

const IPERF_PORT: u16 = 5201;
const HTTP_PORT: u16 = 8083;
/// Longest wait for a tool beyond its own time.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);

/// A program on the path.
pub(crate) fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

/// A tool's server; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What iperf3 carries on some streams from the client or, with `down`, to it. Units are bytes.
pub(crate) fn iperf3(
    world: &World,
    (streams, down): (usize, bool),
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<Spent> {
    let _server = iperf3_server(&world.lab.server)?;
    let mut command = Command::new("iperf3");
    command.args(["--client", &world.lab.server.v4.to_string(), "--json", "--port", &IPERF_PORT.to_string()]);
    command.args(["--parallel", &streams.to_string(), "--time", &seconds(time)]);
    if down {
        command.arg("--reverse");
    }
    let meter = Meter::start(world, syscalls, || 0)?;
    let output = run(&world.lab.client, &mut command, time)?;
    let report: serde_json::Value = serde_json::from_str(&output).context("iperf3's report")?;
    let bytes = report["end"]["sum_received"]["bytes"].as_u64();
    meter.stop(bytes.with_context(|| format!("iperf3: {}", report["error"]))?)
}

fn iperf3_server(host: &Host) -> Result<Server> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--port", &IPERF_PORT.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Server(host.netns.run_thread(|| command.spawn())??);
    let end = Instant::now() + PATIENCE;
    while !listens(server.0.id(), IPERF_PORT) {
        ensure!(server.0.try_wait()?.is_none(), "iperf3 ended");
        ensure!(Instant::now() < end, "iperf3 does not listen");
        pause(LOOK);
    }
    Ok(server)
}

/// Whether a port is listened on in a process' network namespace. To try a connection would occupy the server.
fn listens(pid: u32, port: u16) -> bool {
    let port = format!(":{port:04X}");
    let listening = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some("0A")
    };
    ["tcp", "tcp6"].iter().any(|table| {
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net").join(table))
            .is_ok_and(|table| table.lines().any(listening))
    })
}

/// Requests that wrk makes on some connections of a server of the bench. Units are requests.
pub(crate) fn wrk(
    world: &World,
    connections: usize,
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<Spent> {
    let server: SocketAddr = server::http(&world.lab.server, HTTP_PORT)?;
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections", &connections.to_string()]);
    command.args(["--duration", &seconds(time), &format!("http://{server}/")]);
    let meter = Meter::start(world, syscalls, || 0)?;
    let output = run(&world.lab.client, &mut command, time)?;
    let count = output.lines().find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok());
    ensure!(!output.contains("Socket errors"), "wrk: {output}");
    meter.stop(count.with_context(|| format!("wrk: {output}"))?)
}

/// Both tools take whole seconds only.
fn seconds(time: Duration) -> String {
    time.as_secs().max(1).to_string()
}

/// A tool's output, once it has ended by itself.
fn run(host: &Host, command: &mut Command, time: Duration) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = Server(host.netns.run_thread(|| command.spawn())??);
    let end = Instant::now() + time + PATIENCE;
    while tool.0.try_wait()?.is_none() {
        if Instant::now() > end {
            bail!("{command:?} does not end");
        }
        pause(LOOK);
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut tool.0.stdout.take().context("no output")?, &mut text)?;
    Ok(text)
}
