//! A scripted ZDS server: the node role's side, packet by packet, in bytes that are written by hand from the reference.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio_seqpacket::ancillary::AncillaryMessageWriter;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

/// The agent's first packet: version 1.
pub const HELLO: &[u8] = &[0x08, 0x01];
/// The agent's answer to a request that succeeded.
pub const ACK: &[u8] = &[0x0a, 0x00];
/// The end of the initial list of pods.
pub const SNAPSHOT_SENT: &[u8] = &[0x1a, 0x00];

/// The size of the node role's receive buffer.
const BUFFER: usize = 1024;
/// Longest wait in one step of a script.
const PATIENCE: Duration = Duration::from_secs(10);

/// A listening server.
pub struct ZdsServer(UnixSeqpacketListener);

/// One connection of an agent.
pub struct ZdsPeer(UnixSeqpacket);

impl ZdsServer {
    /// Listens on a path, replacing what is there.
    pub fn bind(path: &Path) -> Result<Self> {
        if path.exists() {
            std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(Self(UnixSeqpacketListener::bind(path).with_context(|| format!("binding {}", path.display()))?))
    }

    /// Waits for an agent and checks its hello.
    pub async fn accept(&mut self) -> Result<ZdsPeer> {
        let socket =
            tokio::time::timeout(PATIENCE, self.0.accept()).await.context("no agent connected")??;
        let peer = ZdsPeer(socket);
        peer.expect(HELLO).await.context("hello")?;
        Ok(peer)
    }
}

impl ZdsPeer {
    /// Sends a packet as it is.
    pub async fn send(&self, packet: &[u8]) -> Result<()> {
        self.send_with(packet, &[]).await
    }

    /// Sends a packet with files.
    pub async fn send_with(&self, packet: &[u8], files: &[BorrowedFd<'_>]) -> Result<()> {
        let mut buffer = [0; 512];
        let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
        if !files.is_empty() {
            ancillary.add_fds(files.iter().copied()).context("too many files for one packet")?;
        }
        let sent = self.0.send_with_ancillary(packet, &mut ancillary).await?;
        ensure!(sent == packet.len(), "sent {sent} of {} bytes", packet.len());
        Ok(())
    }

    /// The agent's next packet; empty when it closed the connection.
    pub async fn recv(&self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; BUFFER];
        let received = tokio::time::timeout(PATIENCE, self.0.recv(&mut buffer));
        let info = match received.await.context("the agent did not answer")? {
            Ok(info) => info,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        ensure!(!info.truncated(), "an answer of {BUFFER} bytes or more breaks the node role");
        buffer.truncate(info.bytes_read());
        Ok(buffer)
    }

    /// Receives exactly these bytes.
    pub async fn expect(&self, packet: &[u8]) -> Result<()> {
        let got = self.recv().await?;
        ensure!(got == packet, "expected {packet:02x?}, got {got:02x?}");
        Ok(())
    }

    /// Waits until the agent has closed the connection.
    pub async fn expect_closed(&self) -> Result<()> {
        self.expect(&[]).await
    }

    /// The agent's answer: nothing, or the text of its error.
    pub async fn answer(&self) -> Result<Option<String>> {
        let packet = self.recv().await?;
        if packet == ACK {
            return Ok(None);
        }
        let [0x0a, rest @ ..] = packet.as_slice() else { bail!("no answer: {packet:02x?}") };
        let [0x0a, text @ ..] = skip_length(rest) else { bail!("no error text: {packet:02x?}") };
        Ok(Some(String::from_utf8(skip_length(text).to_vec())?))
    }

    /// Adds a pod and waits for the answer.
    pub async fn add(&self, pod: &ZdsPod<'_>, netns: impl AsFd) -> Result<Option<String>> {
        self.send_with(&add(pod), &[netns.as_fd()]).await?;
        self.answer().await
    }

    /// Removes a pod and waits for the answer.
    pub async fn del(&self, uid: &str) -> Result<Option<String>> {
        self.send(&del(uid)).await?;
        self.answer().await
    }

    /// Ends the initial list and waits for the answer.
    pub async fn snapshot_sent(&self) -> Result<Option<String>> {
        self.send(SNAPSHOT_SENT).await?;
        self.answer().await
    }
}

/// A pod to be added.
#[derive(Debug, Clone, Copy)]
pub struct ZdsPod<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
}

/// `add{uid 1, workload_info 2: {name 1, namespace 2, service_account 3}}` in field 1.
#[must_use]
pub fn add(pod: &ZdsPod<'_>) -> Vec<u8> {
    let info = [
        field(1, pod.name.as_bytes()),
        field(2, pod.namespace.as_bytes()),
        field(3, pod.service_account.as_bytes()),
    ]
    .concat();
    field(1, &[field(1, pod.uid.as_bytes()), field(2, &info)].concat())
}

/// `keep{uid 1}` in field 5.
#[must_use]
pub fn keep(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

/// `del{uid 2}` in field 2.
#[must_use]
pub fn del(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

/// A length-delimited protobuf field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut left = bytes.len();
    while left >= 0x80 {
        out.push(u8::try_from(left & 0x7f).unwrap_or(0x7f) | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or(0x7f));
    out.extend_from_slice(bytes);
    out
}

/// What follows a varint.
fn skip_length(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().take_while(|byte| **byte >= 0x80).count();
    bytes.get(len + 1..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_byte_for_byte_the_references() {
        let pod = ZdsPod { uid: "u", name: "n", namespace: "ns", service_account: "s" };
        assert_eq!(add(&pod), b"\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x02ns\x1a\x01s");
        assert_eq!(keep("u"), b"\x2a\x03\x0a\x01u");
        assert_eq!(del("u"), b"\x12\x03\x12\x01u");
        assert_eq!(del(&"x".repeat(200))[..6], [0x12, 0xcb, 0x01, 0x12, 0xc8, 0x01]);
    }
}
