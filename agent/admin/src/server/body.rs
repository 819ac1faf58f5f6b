//! Response bodies: complete texts, shared ones that may be revoked, and texts that are generated while they are read.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use isthmus_rt::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::snapshots::Snapshot;

/// How long a response may take, from its first byte: a reader that is slower holds memory for too long.
const DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of a shared text that are copied at a time. The HTTP connection holds a few of them, and no more of the text.
const PIECE: usize = 16 * 1024;

/// A body.
pub struct Body {
    kind: Kind,
    /// When it must have been read; set by the first read.
    deadline: Option<Instant>,
}

/// A reader was too slow: its response is cut off, and its connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooSlow {
    /// It took longer than a response may take.
    Deadline,
    /// The memory of its text was needed for another reader.
    Revoked,
}

enum Kind {
    Whole(Option<Bytes>),
    /// A shared text, its length, and how much of it was read.
    Shared {
        snapshot: Arc<Snapshot>,
        length: usize,
        at: usize,
    },
    Generated {
        /// Writes into the channel. Polled by the reader only, and dropped with the body.
        writer: Option<BoxFuture<'static, ()>>,
        chunks: mpsc::Receiver<Bytes>,
    },
}

impl Body {
    /// A body whose chunks `write` sends.
    pub(super) fn generated<F>(write: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (out, chunks) = mpsc::channel(1);
        Kind::Generated { writer: Some(Box::pin(write(out))), chunks }.into()
    }

    /// A body that others read, too.
    pub(super) fn shared(snapshot: Arc<Snapshot>) -> Self {
        // A text that was revoked already is an error for its reader, not an empty one.
        let length = snapshot.text().map_or(1, |text| text.len());
        Kind::Shared { snapshot, length, at: 0 }.into()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TooSlow>>> {
        match &mut self.kind {
            Kind::Whole(text) => Poll::Ready(text.take().map(Ok)),
            Kind::Shared { length, at, .. } if at == length => Poll::Ready(None),
            Kind::Shared { snapshot, at, .. } => {
                let Some(text) = snapshot.text() else { return Poll::Ready(Some(Err(TooSlow::Revoked))) };
                let piece = &text[*at..text.len().min(*at + PIECE)];
                *at += piece.len();
                Poll::Ready(Some(Ok(Bytes::copy_from_slice(piece))))
            }
            Kind::Generated { writer, chunks } => {
                poll_generated(writer, chunks, cx).map(|chunk| chunk.map(Ok))
            }
        }
    }
}

/// Runs the writer until there is a chunk.
fn poll_generated(
    writer: &mut Option<BoxFuture<'static, ()>>,
    chunks: &mut mpsc::Receiver<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Option<Bytes>> {
    loop {
        // `None`: the writer has ended and every chunk was read.
        if let Poll::Ready(chunk) = chunks.poll_recv(cx) {
            return Poll::Ready(chunk);
        }
        let Some(running) = writer else { return Poll::Pending };
        if running.as_mut().poll(cx).is_ready() {
            *writer = None;
        } else {
            // Polled once only, whether the writer sent something or not: when the task's cooperative budget is used
            // up, the channel returns pending although it has a chunk, until the task has yielded.
            return chunks.poll_recv(cx);
        }
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, deadline: None }
    }
}

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => write!(f, "the response was not read within {DEADLINE:?}"),
            Self::Revoked => f.write_str("the response was read too slowly while others were asked for"),
        }
    }
}

impl std::error::Error for TooSlow {}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(text: T) -> Self {
        Kind::Whole(Some(text.into()).filter(|text| !text.is_empty())).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = TooSlow;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooSlow>>> {
        let now = Instant::now();
        if now > *self.deadline.get_or_insert(now + DEADLINE) {
            return Poll::Ready(Some(Err(TooSlow::Deadline)));
        }
        self.poll_piece(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(text) => text.is_none(),
            Kind::Shared { length, at, .. } => at == length,
            Kind::Generated { .. } => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        let exact = |length: usize| hyper::body::SizeHint::with_exact(length as u64);
        match &self.kind {
            Kind::Whole(text) => exact(text.as_ref().map_or(0, Bytes::len)),
            Kind::Shared { length, at, .. } => exact(length - at),
            Kind::Generated { .. } => hyper::body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::super::encoding::Encoding;
    use super::super::snapshots::{Kind as TextKind, Snapshots};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shared_text_is_whole_or_an_error() {
        let kind = TextKind { encoding: Encoding::Identity, openmetrics: false };
        let text = Bytes::from((0..100_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        let (mut snapshots, now) = (Snapshots::default(), Instant::now());
        let read = Body::shared(snapshots.add(kind, now, text.clone())).collect().await;
        assert!(read.unwrap().to_bytes() == text);
        let mut slow = Body::shared(snapshots.add(kind, now, text.clone()));
        assert_eq!(slow.size_hint().exact(), Some(400_000));
        assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
        snapshots.add(kind, now, vec![0; 64 << 20].into());
        assert_eq!(slow.frame().await.unwrap().unwrap_err(), TooSlow::Revoked);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_has_a_deadline() {
        let mut body = Body::generated(|out| async move { while out.send("x".into()).await.is_ok() {} });
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::advance(DEADLINE).await;
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(body.frame().await.unwrap().unwrap_err(), TooSlow::Deadline);
    }

    /// A reader that takes everything at once exhausts its task's cooperative budget in the middle.
    #[test]
    fn a_long_body_yields_to_the_runtime() {
        const CHUNKS: usize = 10_000;
        let (done, end) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(async {
                let body = Body::generated(|out| async move {
                    for _ in 0..CHUNKS {
                        out.send(Bytes::from_static(b"x")).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                });
                body.collect().await.unwrap().to_bytes().len()
            });
            done.send(read).unwrap();
        });
        assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(CHUNKS));
    }
}
