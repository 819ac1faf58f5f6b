//! One application at one end of a stream: what it is to do, what it did, and how that must fit the other end.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_fuzz::Choices;
use isthmus_hbone::{Reason, RecvHalf, SendHalf, Stream, copy};
use isthmus_rt::task::Tasks;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

/// What an application does.
#[derive(Debug, Clone)]
pub(crate) struct EndPlan {
    /// Sizes of what it sends, one after the other.
    chunks: Vec<usize>,
    /// It resets the stream instead of ending it.
    resets: bool,
    /// Received bytes that it keeps the credit of before it returns it.
    held: usize,
    /// Received bytes at which it gives up.
    gives_up: Option<usize>,
}

/// What it did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Done {
    out: Sent,
    input: Received,
}

#[derive(Debug, Clone, Default)]
struct Sent {
    /// Bytes at most; exactly if it has finished.
    bytes: usize,
    finished: bool,
    gave_up: bool,
}

#[derive(Debug, Clone, Default)]
struct Received {
    bytes: usize,
    ended: bool,
    gave_up: bool,
}

/// It goes no further: it gave up, or the stream is lost.
#[derive(Debug)]
pub(crate) struct Stop;

/// One end of a stream.
pub(crate) trait End {
    type Out: Out;
    type Input: Input;
    fn halves(self) -> (Self::Out, Self::Input);
}

pub(crate) trait Out {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Stop>;
    async fn finish(&mut self) -> Result<(), Stop>;
    /// What is dropped behind it resets the stream.
    fn reset(&mut self);
}

pub(crate) trait Input {
    async fn receive(&mut self) -> Option<Result<Bytes, Stop>>;
    fn release(&mut self, count: usize);
}

impl EndPlan {
    pub(crate) fn new(choices: &mut Choices<'_>, held: u32) -> Self {
        let size = |choices: &mut Choices<'_>| match choices.byte() {
            small @ 0..=99 => usize::from(small),
            middle @ 100..=219 => usize::from(middle) * 100,
            large => [16_383, 16_384, 16_385, 65_535, 65_536, 100_000][usize::from(large) % 6],
        };
        let chunks = choices.some(5, size);
        Self {
            chunks,
            resets: choices.rarely(8),
            held: usize::from(choices.byte()).pow(2).min(held as usize).min(5_000),
            gives_up: choices.rarely(8).then(|| 1 + size(choices)),
        }
    }

    /// More than the windows of a connection.
    pub(crate) fn bulk() -> Self {
        Self { chunks: vec![100_000; 2], resets: false, held: 0, gives_up: None }
    }
}

fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

/// Does what the plan says, sending and receiving at once.
pub(crate) async fn run<E: End>(end: E, plan: &EndPlan) -> Done {
    let (mut out, mut input) = end.halves();
    let mut done = Done::default();
    let Done { out: sent, input: received } = &mut done;
    let send = async {
        for chunk in &plan.chunks {
            let bytes = (sent.bytes..sent.bytes + chunk).map(pattern).collect();
            sent.bytes += chunk;
            out.send(bytes).await?;
        }
        if plan.resets {
            sent.gave_up = true;
            out.reset();
            return Err(Stop);
        }
        out.finish().await?;
        sent.finished = true;
        Ok(())
    };
    let receive = async {
        let mut held = 0;
        while let Some(bytes) = input.receive().await {
            for byte in bytes? {
                assert_eq!(byte, pattern(received.bytes), "at {}", received.bytes);
                received.bytes += 1;
                held += 1;
            }
            if held > plan.held {
                input.release(std::mem::take(&mut held));
            }
            if plan.gives_up.is_some_and(|limit| received.bytes >= limit) {
                received.gave_up = true;
                return Err(Stop);
            }
        }
        received.ended = true;
        Ok(())
    };
    let stopped = tokio::try_join!(send, receive).is_err();
    if stopped && (done.out.gave_up || done.input.gave_up) {
        out.reset();
    }
    done
}

/// What one end sent and the other received.
pub(crate) fn compare(from: &Done, to: &Done, what: &impl Fn() -> String) {
    assert!(to.input.bytes <= from.out.bytes, "more than was sent: {}", what());
    let complete = from.out.finished && to.input.bytes == from.out.bytes;
    assert!(!to.input.ended || complete, "an end that is none: {}", what());
    let gave_up = [from, to].iter().any(|end| end.out.gave_up || end.input.gave_up);
    assert!(gave_up || (complete && to.input.ended), "no end: {}", what());
}

/// The application's socket of a stream that is copied to another one.
pub(crate) async fn behind_copy(stream: Stream, tasks: &Tasks) -> App {
    let pair = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (app, accepted) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
        Ok::<_, std::io::Error>((app?, accepted?.0))
    };
    let (app, ours) = pair.await.unwrap_or_else(|error| panic!("{error}"));
    tasks.spawn("copy", copy::tunnel(ours, stream, Arc::new(())));
    App(Arc::new(app))
}

impl End for Stream {
    type Out = SendHalf;
    type Input = RecvHalf;
    fn halves(self) -> (SendHalf, RecvHalf) {
        let (input, out) = self.split();
        (out, input)
    }
}

impl Out for SendHalf {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Stop> {
        Self::send(self, &bytes).await.map_err(|_| Stop)
    }
    async fn finish(&mut self) -> Result<(), Stop> {
        Self::finish(self).map_err(|_| Stop)
    }
    fn reset(&mut self) {
        Self::reset(self, Reason::CONNECT_ERROR);
    }
}

impl Input for RecvHalf {
    async fn receive(&mut self) -> Option<Result<Bytes, Stop>> {
        Some(self.recv().await?.map_err(|_| Stop))
    }
    fn release(&mut self, count: usize) {
        Self::release(self, count);
    }
}

/// The application's socket. It is closed with both halves, and by [`Out::finish`] only shut down.
pub(crate) struct App(pub(crate) Arc<TcpStream>);

impl End for App {
    type Out = Self;
    type Input = Self;
    fn halves(self) -> (Self, Self) {
        (Self(Arc::clone(&self.0)), self)
    }
}

impl Out for App {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Stop> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.0.writable().await.map_err(|_| Stop)?;
            match self.0.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(Stop),
            }
        }
        Ok(())
    }
    async fn finish(&mut self) -> Result<(), Stop> {
        SockRef::from(&*self.0).shutdown(Shutdown::Write).map_err(|_| Stop)
    }
    fn reset(&mut self) {
        // Fails only when the other end has reset it already.
        let _ = self.0.set_zero_linger();
    }
}

impl Input for App {
    async fn receive(&mut self) -> Option<Result<Bytes, Stop>> {
        let mut buffer = vec![0; 20_000];
        loop {
            if self.0.readable().await.is_err() {
                return Some(Err(Stop));
            }
            match self.0.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => {
                    buffer.truncate(count);
                    return Some(Ok(buffer.into()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Some(Err(Stop)),
            }
        }
    }
    fn release(&mut self, _: usize) {}
}
