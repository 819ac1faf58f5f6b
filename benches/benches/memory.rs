//! The memory of an agent: one real agent after the other, fed by a scripted control plane with meshes of several sizes,
//! and the kernel's figures. ztunnel beside it, in the same run, when `ISTHMUS_UPSTREAM_ZTUNNEL`
//! names its program.
//!
//! `-- 1000 10000` are other sizes than 10,000 and 100,000 workloads.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_benches::proc::{Memory, forget_peak, memory};
use isthmus_benches::{isolated, mesh};
use isthmus_kit::istiod::{AdsStream, Istiod, resource, response};
use isthmus_kit::pki::Ca;
use isthmus_kit::zds::{ZdsPeer, ZdsServer};
use isthmus_kit::{binaries, lab};
use isthmus_proto::type_url;
use isthmus_sys::{netns::Netns, route};
use prost::Message as _;
use tempfile::TempDir;

const SIZES: [u32; 2] = [10_000, 100_000];
/// Longest wait for an agent that reads a push, in a build without optimisation too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Allocators give back what is free only after a while; figures are taken when nothing has changed for this long.
const QUIET: Duration = Duration::from_secs(12);
/// Longest wait for stable figures.
const SETTLED: Duration = Duration::from_secs(60);
const ADMIN: &str = "127.0.0.1:15000";
const MEGABYTE: f64 = 1024.0 * 1024.0;

fn main() -> Result<ExitCode> {
    isolated(&["isthmus"], measure)
}

/// A program to measure.
struct Subject {
    name: &'static str,
    program: PathBuf,
}

/// The figures of one program for a mesh of one size.
struct Figures {
    name: &'static str,
    workloads: u32,
    /// After the push, when memory is stable.
    held: Memory,
    /// At most, up to there.
    peak: u64,
    /// From the push to the answer to it.
    took: Duration,
    dump: Dump,
}

/// The figures of a `/config_dump`.
struct Dump {
    bytes: usize,
    before: u64,
    peak: u64,
    took: Duration,
}

fn measure() -> Result<ExitCode> {
    route::set_up(&Netns::current()?, "lo")?;
    let sizes: Vec<u32> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    let mut subjects = vec![Subject { name: "isthmus", program: binaries::path("isthmus") }];
    match std::env::var_os("ISTHMUS_UPSTREAM_ZTUNNEL").map(PathBuf::from) {
        Some(program) if program.is_file() => subjects.push(Subject { name: "ztunnel", program }),
        Some(program) => anyhow::bail!("ISTHMUS_UPSTREAM_ZTUNNEL: {} is not a file", program.display()),
        None => println!("ISTHMUS_UPSTREAM_ZTUNNEL names no ztunnel: there is nothing to compare with"),
    }
    lab::block_on(async {
        let mut all = Vec::new();
        for size in std::iter::once(0).chain(sizes) {
            let push = response(type_url::ADDRESS, "1", resources(size), &[]).encode_to_vec();
            println!("{size} workloads: a push of {:.1} MB", push.len() as f64 / MEGABYTE);
            for subject in &subjects {
                let figures = subject.fed_with(size, push.clone()).await;
                let figures = figures.with_context(|| format!("{} with {size}", subject.name))?;
                println!("  {}", figures.line());
                all.push(figures);
            }
        }
        compare(&all);
        Ok(ExitCode::SUCCESS)
    })
}

fn resources(size: u32) -> Vec<isthmus_proto::discovery::Resource> {
    let all = mesh::mesh(size).into_iter();
    all.map(|one| resource(type_url::ADDRESS, &mesh::name(&one), "", &one)).collect()
}

impl Subject {
    /// Starts the program, pushes a mesh, measures, and ends it.
    async fn fed_with(&self, workloads: u32, push: Vec<u8>) -> Result<Figures> {
        let dir = tempfile::tempdir()?;
        let ca = Arc::new(Ca::new("memory")?);
        let mut istiod = Istiod::start(&ca).await?;
        let mut zds = ZdsServer::bind(&dir.path().join("zds.sock"))?;
        let agent = Agent(self.start(&istiod, &dir)?);
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let mut stream = istiod.next_stream().await.with_context(log)?;
        stream.subscriptions().await?;
        let begun = Instant::now();
        stream.push_raw(push);
        answered(&mut stream).await?;
        let took = begun.elapsed();
        stream.push(&response(type_url::AUTHORIZATION, "2", Vec::new(), &[]));
        answered(&mut stream).await?;
        let node = zds.accept().await?;
        empty(&node).await?;
        let held = settled(agent.0.id()).await?;
        let peak = memory(agent.0.id())?.peak;
        let dump = dump(agent.0.id())?;
        ensure!(dump.bytes > workloads as usize * 100, "a dump of {} bytes is not all of it", dump.bytes);
        Ok(Figures { name: self.name, workloads, held, peak, took, dump })
    }

    fn start(&self, istiod: &Istiod, dir: &TempDir) -> Result<Child> {
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("root.pem"), istiod.root_pem())?;
        std::fs::write(path("token"), "a token")?;
        let mut command = Command::new(&self.program);
        command.args(["proxy", "ztunnel"]).env_clear().current_dir(dir.path());
        for key in ["XDS_ADDRESS", "CA_ADDRESS"] {
            command.env(key, istiod.url());
        }
        for key in ["XDS_ROOT_CA", "CA_ROOT_CA"] {
            command.env(key, path("root.pem"));
        }
        command.env("INPOD_UDS", path("zds.sock")).env("AUTH_TOKEN", path("token"));
        command.envs([
            // A node without pods: certificates are not measured here.
            ("NODE_NAME", "a-new-node"),
            ("POD_NAME", "ztunnel-abcde"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "127.0.0.1"),
            ("CLUSTER_ID", mesh::CLUSTER),
            ("NETWORK", mesh::NETWORK),
            ("RUST_LOG", "warn"),
        ]);
        let log = std::fs::File::create(path("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| self.program.display().to_string())
    }
}

/// A running agent; killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the client's acknowledgement, however long it takes to apply what it acknowledges.
async fn answered(stream: &mut AdsStream) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match stream.recv().await {
            Ok(request) => {
                ensure!(request.error_detail.is_none(), "refused: {:?}", request.error_detail);
                return Ok(());
            }
            Err(error) if Instant::now() > deadline || error.to_string().contains("ended") => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}

/// A node without pods.
async fn empty(node: &ZdsPeer) -> Result<()> {
    ensure!(node.snapshot_sent().await?.is_none(), "the end of the snapshot was refused");
    Ok(())
}

/// Memory once it is stable.
async fn settled(pid: u32) -> Result<Memory> {
    let begun = Instant::now();
    let (mut last, mut since) = (memory(pid)?, Instant::now());
    while since.elapsed() < QUIET && begun.elapsed() < SETTLED {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = memory(pid)?;
        if now.resident.abs_diff(last.resident) > last.resident / 100 {
            (last, since) = (now, Instant::now());
        }
    }
    memory(pid)
}

/// Requests the dump, reads it to the end, and returns the memory that was needed meanwhile.
fn dump(pid: u32) -> Result<Dump> {
    let before = memory(pid)?.resident;
    forget_peak(pid)?;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(ADMIN)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET /config_dump HTTP/1.0\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n")?;
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => bytes += read,
        }
    }
    Ok(Dump { bytes, before, peak: memory(pid)?.peak, took: begun.elapsed() })
}

impl Figures {
    fn line(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / MEGABYTE;
        format!(
            "{:<8} resident {:>7.1} MB (anonymous {:>7.1}), at most {:>7.1} MB, applied in {:>8.1?}; dump of {:>6.1} MB \
             in {:>8.1?}, {:>+6.1} MB at most",
            self.name,
            mb(self.held.resident),
            mb(self.held.anonymous),
            mb(self.peak),
            self.took,
            self.dump.bytes as f64 / MEGABYTE,
            self.dump.took,
            (self.dump.peak as f64 - self.dump.before as f64) / MEGABYTE,
        )
    }
}

/// The growth from one size to the next, and the ratios of both programs at each.
fn compare(all: &[Figures]) {
    let of = |name: &'static str| all.iter().filter(move |figures| figures.name == name);
    println!("\nmemory, ratios of this run:");
    for name in ["isthmus", "ztunnel"] {
        for (less, more) in of(name).zip(of(name).skip(1)) {
            let workloads = f64::from(more.workloads - less.workloads);
            let grown = more.held.resident.saturating_sub(less.held.resident) as f64;
            println!(
                "  {name}: from {} to {} workloads {:.0} bytes each, {:.2} MB per 10,000",
                less.workloads,
                more.workloads,
                grown / workloads,
                grown / workloads * 10_000.0 / MEGABYTE
            );
        }
    }
    for (ours, theirs) in of("isthmus").zip(of("ztunnel")) {
        let share = |ours: u64, theirs: u64| ours as f64 / theirs as f64;
        println!(
            "  {} workloads: {:.2} of ztunnel's memory, {:.2} of its peak, {:.2} of its peak in a dump, {:.2} of its time",
            ours.workloads,
            share(ours.held.resident, theirs.held.resident),
            share(ours.peak, theirs.peak),
            share(ours.dump.peak, theirs.dump.peak),
            ours.took.as_secs_f64() / theirs.took.as_secs_f64()
        );
    }
}
