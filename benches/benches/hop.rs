//! The cost of one HBONE hop: a client in a pod's network namespace, its agent, the server's agent, a server in another
//! pod's, beside the same client and server in two namespaces on the same wire without any agent. Every comparison is
//! made in one run and printed as a ratio at the end.
//!
//! It makes its own user, network and process namespaces: root is not needed, and nothing outlives it.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{Agent, TwoNodes};
use isthmus_kit::zds::ZdsPeer;
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::sysctl;

/// What one iteration of a throughput benchmark moves.
const BULK: usize = 64 * 1024 * 1024;
/// A request, and its answer, of a latency benchmark.
const MESSAGE: usize = 1024;
/// What is written or read at a time.
const CHUNK: usize = 256 * 1024;
/// The head of a request: its own length and that of the answer, 8 bytes each.
const HEADER: usize = 16;
const PORT: u16 = 8080;
/// Threads of a server: more than connections that are being closed when the next one comes.
const SERVERS: usize = 8;

fn main() -> anyhow::Result<ExitCode> {
    isthmus_benches::isolated(&["isthmus"], measure)
}

fn measure() -> anyhow::Result<ExitCode> {
    let lab = TwoNodes::new()?;
    let plain = Road { name: "direct", client: lab.lan.host()?, server: serve(&lab.lan.host()?)? };
    let hop = Road { name: "hop", client: lab.client.clone(), server: serve(&lab.server)? };
    for host in [&plain.client, &hop.client, &lab.server] {
        // With closes in TIME_WAIT a connection per iteration would soon run out of ports.
        sysctl::write(&host.netns, "net/ipv4/ip_local_port_range", "16384 65535")?;
        sysctl::write(&host.netns, "net/ipv4/tcp_tw_reuse", "1")?;
    }
    let agents = lab::block_on(enrol(&lab))?;
    let roads = [plain, hop];
    let mut criterion = Criterion::default().configure_from_args();
    let compared = compare(&mut criterion, &roads);
    criterion.final_summary();
    let measured = compared.iter().any(|comparison| comparison.ratio().is_some());
    for (agent, zds) in agents {
        let log = agent.stop()?;
        ensure!(!measured || log.contains("src.identity=\"spiffe://"), "the agents carried nothing:\n{log}");
        drop(zds);
    }
    println!("\none HBONE hop beside none, medians of this run:");
    compared.iter().filter_map(Comparison::ratio).for_each(|line| println!("  {line}"));
    Ok(ExitCode::SUCCESS)
}

async fn enrol(lab: &TwoNodes) -> anyhow::Result<[(Agent, ZdsPeer); 2]> {
    let local = lab.local("");
    let rules = PodRules { dns_capture: false, ..PodRules::default() };
    let client = lab.serve(0, &lab.client, "client", &local, |netns| Ok(rules::apply_pod(netns, &rules)?));
    let client = client.await?;
    let server = lab.serve(1, &lab.server, "server", &local, |netns| Ok(rules::apply_pod(netns, &rules)?));
    Ok([client, server.await?])
}

/// The way from a client to a server.
struct Road {
    name: &'static str,
    client: Host,
    server: SocketAddr,
}

/// Iterations in the client's namespace, and the time of what counts in them.
type Work = fn(SocketAddr, u64) -> io::Result<Duration>;

fn compare(criterion: &mut Criterion, roads: &[Road; 2]) -> [Comparison; 4] {
    let mut throughput = criterion.benchmark_group("throughput");
    throughput.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(BULK as u64));
    throughput.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(4));
    let upload = Comparison::new(&mut throughput, "upload", true, roads, upload);
    let download = Comparison::new(&mut throughput, "download", true, roads, download);
    throughput.finish();
    let mut latency = criterion.benchmark_group("latency");
    latency.sample_size(20).sampling_mode(SamplingMode::Flat);
    latency.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let request = Comparison::new(&mut latency, "request", false, roads, requests);
    let connection = Comparison::new(&mut latency, "connection", false, roads, connections);
    latency.finish();
    [upload, download, request, connection]
}

/// The times per iteration of the same work over both roads.
struct Comparison {
    name: &'static str,
    is_throughput: bool,
    times: [Vec<Duration>; 2],
}

impl Comparison {
    fn new(
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &'static str,
        is_throughput: bool,
        roads: &[Road; 2],
        work: Work,
    ) -> Self {
        let times = [&roads[0], &roads[1]].map(|road| {
            let times = RefCell::new(Vec::new());
            group.bench_function(format!("{name}/{}", road.name), |bencher| {
                bencher.iter_custom(|iterations| {
                    let done = road.client.netns.run_thread(|| work(road.server, iterations));
                    let took = done
                        .map_err(anyhow::Error::from)
                        .and_then(|done| Ok(done?))
                        .unwrap_or_else(|error| panic!("{name} over {}: {error:#}", road.name));
                    times.borrow_mut().push(took.div_f64(iterations as f64));
                    took
                });
            });
            times.into_inner()
        });
        Self { name, is_throughput, times }
    }

    /// Both medians and their ratio in words; nothing when the command line left one out.
    fn ratio(&self) -> Option<String> {
        let [direct, hop] = self.times.each_ref().map(|times| median(times));
        let (name, direct, hop) = (self.name, direct?.as_secs_f64(), hop?.as_secs_f64());
        Some(if self.is_throughput {
            let rate = |seconds: f64| BULK as f64 * 8.0 / seconds / 1e9;
            let share = direct / hop;
            format!("{name:<10} {:>8.2} Gb/s of {:>8.2} Gb/s: {share:.3} of direct", rate(hop), rate(direct))
        } else {
            let (direct, hop, times) = (direct * 1e6, hop * 1e6, hop / direct);
            format!("{name:<10} {hop:>8.1} µs  for {direct:>8.1} µs:  {times:.1} times direct")
        })
    }
}

fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn upload(server: SocketAddr, iterations: u64) -> io::Result<Duration> {
    on_one_connection(server, iterations, BULK, 1)
}

fn download(server: SocketAddr, iterations: u64) -> io::Result<Duration> {
    on_one_connection(server, iterations, HEADER, BULK)
}

fn requests(server: SocketAddr, iterations: u64) -> io::Result<Duration> {
    on_one_connection(server, iterations, MESSAGE, MESSAGE)
}

/// Requests one after the other over a connection that has carried one before.
fn on_one_connection(server: SocketAddr, iterations: u64, ask: usize, answer: usize) -> io::Result<Duration> {
    let mut buffer = vec![0; CHUNK];
    let mut stream = connect(server)?;
    request(&mut stream, HEADER, 1, &mut buffer)?;
    let begun = Instant::now();
    for _ in 0..iterations {
        request(&mut stream, ask, answer, &mut buffer)?;
    }
    Ok(begun.elapsed())
}

/// A new connection for every request, closed before the next one.
fn connections(server: SocketAddr, iterations: u64) -> io::Result<Duration> {
    let mut buffer = vec![0; CHUNK];
    let begun = Instant::now();
    for _ in 0..iterations {
        request(&mut connect(server)?, MESSAGE, MESSAGE, &mut buffer)?;
    }
    Ok(begun.elapsed())
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    // A benchmark that hangs is a failure too.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn request(stream: &mut TcpStream, ask: usize, answer: usize, buffer: &mut [u8]) -> io::Result<()> {
    let (own, others) = buffer[..HEADER].split_at_mut(HEADER / 2);
    own.copy_from_slice(&(ask as u64).to_be_bytes());
    others.copy_from_slice(&(answer as u64).to_be_bytes());
    send(stream, ask, buffer)?;
    receive(stream, answer, buffer)
}

fn send(stream: &mut TcpStream, mut length: usize, buffer: &[u8]) -> io::Result<()> {
    while length > 0 {
        let part = length.min(buffer.len());
        stream.write_all(&buffer[..part])?;
        length -= part;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, mut length: usize, buffer: &mut [u8]) -> io::Result<()> {
    while length > 0 {
        let part = length.min(buffer.len());
        match stream.read(&mut buffer[..part])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length -= read,
        }
    }
    Ok(())
}

/// A server in a host's namespace. Its threads wait for connections, so that none has to be started for one.
fn serve(host: &Host) -> anyhow::Result<SocketAddr> {
    let address = SocketAddr::new(host.v4.into(), PORT);
    let listener = host.netns.run(|| TcpListener::bind(address))?.context("listening")?;
    for _ in 0..SERVERS {
        let listener = listener.try_clone()?;
        std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            let mut buffer = vec![0; CHUNK];
            for stream in listener.incoming().flatten() {
                // Ends with an error in any case: the client is gone, and reports its own errors.
                let _ = answer(stream, &mut buffer);
            }
        })?;
    }
    Ok(address)
}

fn answer(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut lengths = [[0; HEADER / 2]; 2];
        stream.read_exact(lengths.as_flattened_mut())?;
        let [ask, answer] = lengths.map(|length| usize::try_from(u64::from_be_bytes(length)));
        let rest = ask.map_err(io::Error::other)?.saturating_sub(HEADER);
        receive(&mut stream, rest, buffer)?;
        send(&mut stream, answer.map_err(io::Error::other)?, buffer)?;
    }
}
