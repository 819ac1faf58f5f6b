//! A plain HTTP client that runs inside pods: it resolves names as every program there does, through the C library and
//! the pod's resolv.conf. It asks one after the other, at a rate, or with several workers that never pause.

mod load;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context;
use isthmus_rt::task::Tasks;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::{self, KeptConnection};

/// What to ask for, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `http://host[:port]/path`
    url: String,
    /// How many requests.
    #[arg(short, long, default_value_t = 1)]
    number: u32,
    /// Prints one JSON object per request instead of the bodies.
    #[arg(long)]
    json: bool,
    /// Seconds that one request may take.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// Requests per second, whether earlier ones were answered or not; without it, each waits for the one before.
    #[arg(long, value_name = "PER-SECOND", conflicts_with = "workers")]
    rate: Option<u32>,
    /// So many are under way at all times: the next one begins when one has ended.
    #[arg(long)]
    workers: Option<u32>,
    /// Every second request goes over one of so many connections that are kept alive; all others open their own.
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 0)]
    kept: usize,
    /// Goes on after the last request until standard input ends.
    #[arg(long)]
    hold: bool,
    /// Prints one JSON object about all requests, instead of anything about each.
    #[arg(long, conflicts_with = "json")]
    summary: bool,
}

/// How one request went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// HTTP status; nothing when there was no response.
    pub status: Option<u16>,
    /// The response's body.
    pub body: String,
    /// Why there was no response.
    pub error: Option<String>,
    /// Time from the request to the end of the response.
    pub seconds: f64,
    /// Whether it went over a connection that is kept alive.
    #[serde(default)]
    pub kept: bool,
}

/// How many requests went how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests without a 2xx response.
    pub failed: u64,
    /// Error of the last failed request.
    pub error: Option<String>,
}

/// Sends the requests; whether all were answered with a 2xx.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let client = Client::new(options)?;
    let mut said = Summary::default();
    let tell = |outcome: &Outcome| {
        said.add(outcome);
        match options {
            Options { summary: true, .. } => {}
            Options { json: true, .. } => print(format_args!("{}\n", serde_json::to_string(outcome)?))?,
            Options { url, .. } => {
                print(&outcome.body)?;
                if let Some(error) = &outcome.error {
                    // There is no other place to report it.
                    let _ = writeln!(io::stderr(), "{url}: {error}");
                }
            }
        }
        Ok(())
    };
    load::run(client, options, tell).await?;
    if options.summary {
        print(format_args!("{}\n", serde_json::to_string(&said)?))?;
    }
    Ok(said.failed == 0)
}

/// Writes to standard output. A reader that has closed its end has seen enough.
fn print(text: impl Display) -> io::Result<()> {
    let written = write!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Asks for one URL.
struct Client {
    url: Url,
    limit: Duration,
    kept: Vec<Mutex<Option<KeptConnection>>>,
    /// The connections that are kept.
    tasks: Tasks,
}

// === impl Outcome ===

impl Outcome {
    /// Whether the answer was a 2xx.
    pub fn is_good(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

// === impl Summary ===

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.sent += 1;
        if !outcome.is_good() {
            self.failed += 1;
            let status = || outcome.status.map(|status| format!("status {status}"));
            self.error = outcome.error.clone().or_else(status);
        }
    }
}

// === impl Client ===

impl Client {
    fn new(options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            url: Url::parse(&options.url)?,
            limit: Duration::from_secs(options.timeout),
            kept: (0..options.kept).map(|_| Mutex::default()).collect(),
            tasks: Tasks::new("connections"),
        })
    }

    /// The n-th request.
    async fn ask(&self, n: usize) -> Outcome {
        // Every second one, and these in turn.
        let kept = (n % 2 == 1).then(|| self.kept.get((n / 2) % self.kept.len().max(1))).flatten();
        let begun = Instant::now();
        let exchange = async {
            match kept {
                Some(kept) => self.over(&mut *kept.lock().await).await,
                None => http::get(self.connect().await?, &self.url.authority, &self.url.path).await,
            }
        };
        let answer = match tokio::time::timeout(self.limit, exchange).await {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer in {:?}", self.limit)),
        };
        let (seconds, kept) = (begun.elapsed().as_secs_f64(), kept.is_some());
        match answer {
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body).into_owned();
                Outcome { status: Some(answer.status), body, error: None, seconds, kept }
            }
            Err(error) => Outcome { status: None, body: String::new(), error: Some(error), seconds, kept },
        }
    }

    /// Over the connection there is, if it can still be used, else over a new one that takes its place.
    async fn over(&self, kept: &mut Option<KeptConnection>) -> anyhow::Result<http::Answer> {
        let mut open = match kept.take().filter(KeptConnection::is_open) {
            Some(open) => open,
            None => KeptConnection::open(self.connect().await?, &self.tasks).await?,
        };
        let answer = open.get(&self.url.authority, &self.url.path).await?;
        *kept = Some(open);
        Ok(answer)
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        TcpStream::connect((self.url.host.as_str(), self.url.port)).await.context("cannot connect")
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Url {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let uri: ::http::Uri = text.parse().with_context(|| format!("{text} is no URL"))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.with_context(|| format!("{text} is not http://host[:port]/path"))?;
        let path = uri.path_and_query().map_or("/", ::http::uri::PathAndQuery::as_str);
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("http://helloworld.sample:5000/hello?x=1").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str()),
            ("helloworld.sample", 5000, "/hello?x=1")
        );
        assert_eq!(Url::parse("http://a").unwrap().path, "/");
        assert!(Url::parse("https://a").unwrap_err().to_string().contains("http://host"));
    }

    fn options(line: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        <Line as clap::Parser>::try_parse_from(std::iter::once(&"request").chain(line)).unwrap().options
    }

    #[tokio::test]
    async fn a_refused_connection_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let client = Client::new(&options(&[&format!("http://127.0.0.1:{port}/")])).unwrap();
        let outcome = client.ask(0).await;
        assert!(outcome.status.is_none());
        assert!(outcome.error.unwrap().starts_with("cannot connect: "));
    }

    #[tokio::test]
    async fn every_second_request_goes_over_the_kept_connections_in_turn() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (tasks, connections) = (Tasks::new("test"), std::sync::Arc::new(AtomicUsize::new(0)));
        let (own, counter) = (tasks.clone(), std::sync::Arc::clone(&connections));
        tasks.spawn("server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let service = hyper::service::service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new()))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                own.spawn("connection", async move {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        let options = options(&[&url, "-n", "12", "--kept", "2", "--rate", "1000", "--json"]);
        let mut kept = 0;
        let client = Client::new(&options).unwrap();
        let tell = |outcome: &Outcome| {
            assert!(outcome.is_good(), "{outcome:?}");
            kept += usize::from(outcome.kept);
            Ok(())
        };
        load::run(client, &options, tell).await.unwrap();
        assert_eq!((kept, connections.load(Ordering::SeqCst)), (6, 6 + 2));
    }
}
