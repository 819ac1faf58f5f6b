//! Random work of applications over whole tunnels, whose other end is the `h2` crate's: as streams, and as sockets through
//! the copy. No byte may be lost, added or changed, an end is never seen that was not sent, streams of which neither end
//! gave up end properly, and no credit is lost.

use std::time::Duration;

use isthmus_fuzz::Choices;
use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{Head, OpenError, Settings, Stream};
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

#[path = "tunnel/end.rs"]
mod end;
#[path = "tunnel/h2_peer.rs"]
mod h2_peer;

use end::{Done, EndPlan};

/// All of one run.
#[derive(Debug, Clone)]
struct Plan {
    /// Our end is the client's.
    client: bool,
    /// Our applications are behind sockets.
    sockets: bool,
    /// Bytes that the transport takes at once.
    transport: usize,
    settings: Settings,
    /// The stream window of the h2 end.
    window: u32,
    /// What our application and the other one do with each stream.
    streams: Vec<(EndPlan, EndPlan)>,
}

/// Which application of a stream, and what came of it.
type Report = (u16, bool, Done);

impl Plan {
    fn new(choices: &mut Choices<'_>, sockets: bool) -> Self {
        let window = |choices: &mut Choices<'_>| match choices.byte() % 4 {
            0 => 65_535,
            1 => 100 + u32::from(choices.byte()),
            2 => 3_000 + 256 * u32::from(choices.byte()),
            _ => 300_000,
        };
        let client = choices.rarely(2);
        let transport = [1 << 16, 4_000, 100, 20][usize::from(choices.byte() % 4)];
        let settings = Settings {
            stream_window: window(choices),
            connection_window: 65_535,
            frame_size: 16_384,
            ..Settings::default()
        };
        let theirs = window(choices);
        let held = (settings.stream_window / 2, theirs / 2);
        let mut streams = Vec::new();
        while !choices.is_over() && streams.len() < 8 {
            streams.push((EndPlan::new(choices, held.0), EndPlan::new(choices, held.1)));
        }
        // The last one proves that the connection's windows are whole.
        streams.push((EndPlan::bulk(), EndPlan::bulk()));
        Self { client, sockets, transport, settings, window: theirs, streams }
    }

    fn of(&self, port: u16) -> (EndPlan, EndPlan) {
        self.streams[usize::from(port - 1)].clone()
    }
}

/// Our application at a stream.
async fn work(plan: &Plan, port: u16, stream: Stream, tasks: &Tasks, report: &mpsc::UnboundedSender<Report>) {
    let (ours, _) = plan.of(port);
    let done = if plan.sockets {
        let app = end::behind_copy(stream, tasks).await;
        end::run(app, &ours).await
    } else {
        end::run(stream, &ours).await
    };
    let _ = report.send((port, true, done));
}

async fn our_client(tunnel: &Tunnel, plan: &Plan, tasks: &Tasks, report: &mpsc::UnboundedSender<Report>) {
    let last = plan.streams.len();
    for wave in [0..last - 1, last - 1..last] {
        let all = wave.map(async |index| {
            let port = u16::try_from(index + 1).unwrap_or(0);
            let authority = format!("10.0.0.1:{port}").parse().unwrap_or_else(|error| panic!("{error}"));
            match tunnel.open(&Head::new(authority)).await {
                Ok((stream, _)) => work(plan, port, stream, tasks, report).await,
                // h2 does not send an answer that is followed by a reset at once.
                Err(OpenError::Reset(_)) => drop(report.send((port, true, Done::default()))),
                Err(error) => panic!("{plan:?}: {error}"),
            }
        });
        futures_util::future::join_all(all).await;
    }
}

fn our_server(transport: DuplexStream, plan: &Plan, tasks: &Tasks, report: &mpsc::UnboundedSender<Report>) {
    let (plan, own, report) = (plan.clone(), tasks.clone(), report.clone());
    tasks.spawn("our server", async move {
        let (_signal, watch) = drain::channel();
        let settings = plan.settings.clone();
        let answer = |request: Request| {
            let Ok(port) = request.head.as_ref().map(|head| head.authority.port()) else { return };
            let Ok(stream) = request.accept(None) else { return };
            let (plan, tasks, report) = (plan.clone(), own.clone(), report.clone());
            own.spawn("application", async move { work(&plan, port, stream, &tasks, &report).await });
        };
        let _ = server::serve(transport, &settings, watch, answer).await;
    });
}

async fn run(plan: Plan) {
    let tasks = Tasks::new("fuzz");
    let (ours, theirs) = tokio::io::duplex(plan.transport);
    let (report, mut reports) = mpsc::unbounded_channel();
    if plan.client {
        h2_peer::serve(theirs, &plan, &tasks, &report);
        let tunnel = client::start(ours, &plan.settings, &tasks).unwrap_or_else(|error| panic!("{error}"));
        our_client(&tunnel, &plan, &tasks, &report).await;
    } else {
        our_server(ours, &plan, &tasks, &report);
        h2_peer::request(theirs, &plan, &tasks, &report).await;
    }
    let mut all = vec![[None, None]; plan.streams.len()];
    while all.iter().flatten().any(Option::is_none) {
        let Some((port, ours, done)) = reports.recv().await else { panic!("{plan:?}: a report is missing") };
        all[usize::from(port - 1)][usize::from(ours)] = Some(done);
    }
    for (index, ends) in all.into_iter().enumerate() {
        if let [Some(theirs), Some(ours)] = ends {
            let what = || format!("stream {index} of {plan:?}: ours {ours:?}, theirs {theirs:?}");
            end::compare(&ours, &theirs, &what);
            end::compare(&theirs, &ours, &what);
        }
    }
}

fn fuzz(sockets: bool, paused: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build();
    let runtime = std::panic::AssertUnwindSafe(runtime.unwrap_or_else(|error| panic!("{error}")));
    bolero::check!().with_max_len(256).for_each(move |bytes: &[u8]| {
        let plan = Plan::new(&mut Choices::new(bytes), sockets);
        let limited = async {
            let done = tokio::time::timeout(Duration::from_secs(20), run(plan.clone())).await;
            assert!(done.is_ok(), "a deadlock: {plan:?}");
        };
        runtime.block_on(limited);
    });
}

/// A deadlock ends in the timeout at once, as the clock is paused.
#[test]
fn streams_of_a_tunnel_to_h2() {
    fuzz(false, true);
}

#[test]
fn applications_of_a_tunnel_to_h2() {
    fuzz(true, false);
}
