//! A plain HTTP client that runs inside pods: it resolves names as every program there does, through the C library and
//! the pod's resolv.conf, and opens a connection for each request.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::http;

/// What to ask for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
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
}

/// How one request went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Status and body, or why there are none.
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    pub(crate) error: Option<String>,
    pub(crate) seconds: f64,
}

/// Sends the requests one after the other; whether all were answered with a 2xx.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let url = Url::parse(&options.url)?;
    let mut good = true;
    for _ in 0..options.number {
        let outcome = once(&url, Duration::from_secs(options.timeout)).await;
        good &= outcome.status.is_some_and(|status| (200..300).contains(&status));
        if options.json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            print!("{}", outcome.body);
            outcome.error.iter().for_each(|error| eprintln!("{}: {error}", options.url));
        }
    }
    Ok(good)
}

async fn once(url: &Url, limit: Duration) -> Outcome {
    let begun = Instant::now();
    let exchange = async {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await.context("cannot connect")?;
        http::get(stream, &url.authority, &url.path).await
    };
    let answer = match tokio::time::timeout(limit, exchange).await {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer in {limit:?}")),
    };
    let seconds = begun.elapsed().as_secs_f64();
    match answer {
        Ok(answer) => {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            Outcome { status: Some(answer.status), body, error: None, seconds }
        }
        Err(error) => Outcome { status: None, body: String::new(), error: Some(error), seconds },
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

    #[tokio::test]
    async fn a_refused_connection_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let url = Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap();
        let outcome = once(&url, Duration::from_secs(5)).await;
        assert!(outcome.status.is_none());
        assert!(outcome.error.unwrap().starts_with("cannot connect: "));
    }
}
