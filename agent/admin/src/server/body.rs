//! Response bodies: complete texts, and texts that are generated while they are read.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use isthmus_rt::BoxFuture;
use tokio::sync::mpsc;

/// A body.
pub struct Body(Kind);

enum Kind {
    Whole(Option<Bytes>),
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
        Self(Kind::Generated { writer: Some(Box::pin(write(out))), chunks })
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(text: T) -> Self {
        Self(Kind::Whole(Some(text.into()).filter(|text| !text.is_empty())))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (writer, chunks) = match &mut self.0 {
            Kind::Whole(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Generated { writer, chunks } => (writer, chunks),
        };
        loop {
            // `None`: the writer has ended and every chunk was read.
            if let Poll::Ready(chunk) = chunks.poll_recv(cx) {
                return Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))));
            }
            let Some(running) = writer else { return Poll::Pending };
            if running.as_mut().poll(cx).is_ready() {
                *writer = None;
            } else {
                // Polled once only, whether the writer sent something or not: when the task's cooperative budget is used
                // up, the channel returns pending although it has a chunk, until the task has yielded.
                return chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.0 {
            Kind::Whole(text) => {
                hyper::body::SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Kind::Generated { .. } => hyper::body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

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
