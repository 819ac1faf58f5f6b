//! Whatever is put into a send buffer, in whatever sizes, comes out as the same bytes in valid records and frames.

use std::collections::HashMap;

use isthmus_http2::{Event, Settings};
use isthmus_record::{Opened, Opener, OpenerParts, PartialMessage, Role, SealerParts, Suite, TrafficSecret};

use super::*;

/// The peer: opens what was written, in pieces of the sizes in which it was written.
struct Peer {
    opener: Option<Opener>,
    http2: Connection,
    received: Vec<u8>,
    data: HashMap<StreamId, Vec<u8>>,
}

fn secret() -> TrafficSecret {
    TrafficSecret::new(Suite::Aes128GcmSha256, &[7; 32]).unwrap()
}

fn pair(tls: bool) -> (SendBuffer, Connection, Peer) {
    pair_at(tls, 0)
}

/// After so many records.
fn pair_at(tls: bool, sequence: u64) -> (SendBuffer, Connection, Peer) {
    let sealer = SealerParts { secret: secret(), sequence, closed: false };
    let opener = OpenerParts {
        secret: secret(),
        sequence,
        role: Role::Server,
        partial: PartialMessage::default(),
        idle_records: 0,
        closed: false,
    };
    let window = Settings { stream_window: 1 << 24, connection_window: 1 << 30, ..Settings::default() };
    let mut peer = Peer {
        opener: tls.then(|| Opener::from_parts(opener).unwrap()),
        http2: Connection::server(window),
        received: Vec::new(),
        data: HashMap::new(),
    };
    let mut http2 = Connection::client(Settings::default());
    let mut settings = peer.http2.output().to_vec();
    peer.http2.consumed(settings.len());
    let mut at = 0;
    while http2.receive(&settings, &mut at).unwrap().is_some() {}
    settings.clear();
    (SendBuffer::new(tls.then(|| Sealer::from_parts(sealer).unwrap())), http2, peer)
}

impl Peer {
    fn process(&mut self) {
        let mut at = 0;
        while let Some(length) = self.next_record(at) {
            let record = &mut self.received[at..at + length];
            let range = match self.opener.as_mut().map(|opener| opener.open(record).unwrap()) {
                None => 0..length,
                Some(Opened::Data(range)) => range,
                Some(Opened::KeyUpdate { .. } | Opened::CloseNotify) => 0..0,
                Some(other) => panic!("{other:?}"),
            };
            let plain = &record[range];
            let mut read = 0;
            while let Some(event) = self.http2.receive(plain, &mut read).unwrap() {
                if let Event::Data { stream, range } = event {
                    self.data.entry(stream).or_default().extend_from_slice(&plain[range]);
                }
            }
            at += length;
        }
        self.received.drain(..at);
    }

    fn next_record(&self, at: usize) -> Option<usize> {
        let rest = &self.received[at..];
        let length = if self.opener.is_some() { Opener::record_len(rest).unwrap()? } else { rest.len() };
        (length > 0 && length <= rest.len()).then_some(length)
    }
}

/// Takes `most` bytes with each write.
struct Wire<'a> {
    peer: &'a mut Peer,
    most: usize,
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = buf.len().min(self.most);
        self.peer.received.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn write(buffer: &mut SendBuffer, peer: &mut Peer, most: usize) {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(buffer.poll_write(&mut Wire { peer, most }, &mut cx).is_ready());
    assert_eq!((buffer.len(), buffer.chunks.len()), (0, 0), "an idle tunnel holds no buffer");
    peer.process();
}

/// A read that gives `count` bytes which continue `sent`.
fn application(sent: &mut Vec<u8>, count: usize) -> impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize> {
    move |slices| {
        let mut left = count;
        for slice in slices {
            let now = left.min(slice.len());
            for byte in &mut slice[..now] {
                *byte = sent.len().to_le_bytes()[0] ^ sent.len().to_le_bytes()[1];
                sent.push(*byte);
            }
            left -= now;
        }
        Ok(count - left)
    }
}

fn open(http2: &mut Connection) -> StreamId {
    http2.send_connect("10.0.0.1:80", &[]).unwrap()
}

#[test]
fn reads_of_every_size_arrive_as_they_were() {
    for tls in [true, false] {
        let (mut buffer, mut http2, mut peer) = pair(tls);
        let id = open(&mut http2);
        let mut sent = Vec::new();
        let edges =
            [1, 9, 16_374, 16_375, 16_376, 32_749, 32_750, 32_751, 100_000, 261_999, 262_000, 262_001];
        for slots in [1, 2, 3, MAX_SLOTS] {
            for count in (0..40).chain(edges) {
                let read = application(&mut sent, count);
                buffer.read_frames(&mut http2, id, (slots, usize::MAX), read).unwrap();
                if count % 7 != 3 {
                    write(&mut buffer, &mut peer, 1 + count * 3);
                }
            }
        }
        write(&mut buffer, &mut peer, usize::MAX);
        assert_eq!(peer.data.get(&id), Some(&sent), "tls: {tls}");
    }
}

#[test]
fn a_read_stays_within_its_limit() {
    for limit in [1, 100, 16_375, 16_376, 50_000] {
        let (mut buffer, mut http2, _) = pair(true);
        let (id, mut sent) = (open(&mut http2), Vec::new());
        let read = application(&mut sent, 1 << 20);
        assert_eq!(buffer.read_frames(&mut http2, id, (MAX_SLOTS, limit), read).unwrap(), limit);
    }
}

#[test]
fn small_messages_of_many_streams_share_a_record() {
    let (mut buffer, mut http2, mut peer) = pair(true);
    let streams: Vec<_> = (0..50).map(|_| open(&mut http2)).collect();
    buffer.push_output(&mut http2).unwrap();
    write(&mut buffer, &mut peer, usize::MAX);
    let mut sent = vec![Vec::new(); streams.len()];
    for (id, sent) in streams.iter().zip(&mut sent) {
        buffer.read_frames(&mut http2, *id, (1, usize::MAX), application(sent, 100)).unwrap();
    }
    assert_eq!(buffer.len(), HEADER_LEN + 50 * (FRAME_HEADER + 100), "one record, not yet sealed");
    write(&mut buffer, &mut peer, usize::MAX);
    for (id, sent) in streams.iter().zip(&sent) {
        assert_eq!(peer.data.get(id), Some(sent));
    }
}

#[test]
fn a_read_that_fails_or_is_empty_leaves_nothing() {
    let (mut buffer, mut http2, mut peer) = pair(true);
    let id = open(&mut http2);
    buffer.push_output(&mut http2).unwrap();
    write(&mut buffer, &mut peer, usize::MAX);
    for slots in [1, MAX_SLOTS] {
        let would_block = |_: &mut [IoSliceMut<'_>]| Err(io::ErrorKind::WouldBlock.into());
        assert!(buffer.read_frames(&mut http2, id, (slots, usize::MAX), would_block).is_err());
        assert_eq!(buffer.read_frames(&mut http2, id, (slots, usize::MAX), |_| Ok(0)).unwrap(), 0);
        assert_eq!((buffer.len(), buffer.chunks.len()), (0, 0));
    }
}

#[test]
fn frames_and_data_around_a_key_update_and_the_close() {
    let (mut buffer, mut http2, mut peer) = pair(true);
    let id = open(&mut http2);
    let mut sent = vec![5; 40_000];
    buffer.push_data(&mut http2, id, &sent).unwrap();
    buffer.owe_key_update();
    buffer.owe_key_update();
    buffer.read_frames(&mut http2, id, (MAX_SLOTS, usize::MAX), application(&mut sent, 70_000)).unwrap();
    buffer.owe_key_update();
    buffer.push_data(&mut http2, id, &[9; 3]).unwrap();
    sent.extend([9; 3]);
    buffer.close().unwrap();
    write(&mut buffer, &mut peer, 1000);
    assert_eq!(peer.data.get(&id), Some(&sent));
}

#[test]
fn a_key_that_wears_out_within_a_read_is_updated_behind_it() {
    for before in 0..20 {
        let (mut buffer, mut http2, mut peer) = pair_at(true, (1 << 23) - before);
        let (id, mut sent) = (open(&mut http2), Vec::new());
        for _ in 0..3 {
            let read = application(&mut sent, 200_000);
            buffer.read_frames(&mut http2, id, (MAX_SLOTS, usize::MAX), read).unwrap();
        }
        write(&mut buffer, &mut peer, usize::MAX);
        assert_eq!(peer.data.get(&id), Some(&sent), "{before} records before");
    }
}

#[test]
fn nothing_is_written_behind_an_alert_or_the_close() {
    for is_alert in [true, false] {
        let (mut buffer, mut http2, mut peer) = pair(true);
        let (id, mut sent) = (open(&mut http2), Vec::new());
        buffer.push_output(&mut http2).unwrap();
        if is_alert { buffer.alert(Alert::BAD_RECORD_MAC) } else { buffer.close() }.unwrap();
        let length = buffer.len();
        http2.ping([1; 8]);
        buffer.push_output(&mut http2).unwrap();
        assert!(http2.output().is_empty(), "it is thrown away");
        assert!(buffer.push_data(&mut http2, id, b"secret").is_err());
        let read = application(&mut sent, 100);
        assert!(buffer.read_frames(&mut http2, id, (1, usize::MAX), read).is_err());
        assert_eq!((sent.len(), buffer.len()), (0, length));
        buffer.close().unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(buffer.poll_write(&mut Wire { peer: &mut peer, most: usize::MAX }, &mut cx).is_ready());
        assert_eq!(peer.received.len(), length);
    }
}
