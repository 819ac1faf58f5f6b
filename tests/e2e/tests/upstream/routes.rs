//! One cluster with ztunnel and the other with our agent: requests between their pods pass through both programs, and so
//! do refusals.

use anyhow::{Result, ensure};
use isthmus_kit::lab;

use super::playground::{URL, by};
use super::setup::{CLUSTERS, ECHO, Mesh, TestRoute, exchange};

/// Enough that each version is chosen: one of them never is once in half a million runs.
const NUMBER: usize = 20;

pub(crate) fn requests_pass_with_ztunnel_in_west() -> Result<()> {
    everything(&["west"])
}

pub(crate) fn requests_pass_with_ztunnel_in_east() -> Result<()> {
    everything(&["east"])
}

fn everything(places: &[&str]) -> Result<()> {
    lab::block_on(async {
        let mesh = Mesh::up(places)?;
        mesh.both_versions_answer()?;
        for way in TestRoute::ALL {
            mesh.carries(way, 1000).await?;
            mesh.ends(way).await?;
            mesh.refuses(way).await?;
        }
        Ok(())
    })
}

impl Mesh {
    /// Requests by name from each cluster are answered by both.
    pub(crate) fn both_versions_answer(&self) -> Result<()> {
        for cluster in CLUSTERS {
            let outcomes =
                self.playground.request(&self.playground.pod(&format!("{cluster}/sleep"))?, URL, NUMBER)?;
            let (v1, v2) = (by("v1", &outcomes), by("v2", &outcomes));
            println!("{cluster}/sleep: {v1} by v1, {v2} by v2 of {NUMBER}");
            ensure!(v1 > 0 && v2 > 0 && v1 + v2 == NUMBER, "{cluster}/sleep: {outcomes:?}");
        }
        Ok(())
    }

    /// Bytes in both directions, and the log lines of both agents.
    pub(crate) async fn carries(&self, way: TestRoute, bytes: usize) -> Result<()> {
        let sent = vec![b'a'; bytes];
        let back = exchange(self.connect("asker", way, ECHO).await?, &sent).await?;
        ensure!(back == sent, "{way:?}: {} of {bytes} bytes came back", back.len());
        self.lines(way, bytes).await.map(drop)
    }

    /// A client that the policy refuses receives nothing, and both agents log the reason.
    pub(crate) async fn refuses(&self, way: TestRoute) -> Result<()> {
        let back = match self.connect("other", way, ECHO).await {
            Ok(stream) => exchange(stream, b"let me in").await,
            Err(error) => Err(error),
        };
        ensure!(!matches!(&back, Ok(bytes) if !bytes.is_empty()), "{way:?}: {back:?}");
        let identity = ("src.identity", "spiffe://cluster.local/ns/sample/sa/other");
        let host = way.host();
        let fields = [identity, ("dst.service", &host)];
        let client = [&fields[..], &[("direction", "outbound")]].concat();
        let client = self.line(&self.near(way.from)?, &client).await?;
        ensure!(client.level == "error" && client.get("error").contains("401"), "{client:?}");
        let server = [&fields[..], &[("direction", "inbound")]].concat();
        let server = self.line(&self.far(way.to)?, &server).await?;
        let why = "explicitly denied by: sample/no-other";
        ensure!(server.level == "error" && server.get("error").contains(why), "{server:?}");
        Ok(())
    }
}
