//! A tunnel between values and items.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use isthmus_http2::{Code, Fields, RequestHead, Role as Http2Role};
use isthmus_proto::handover as proto;
use isthmus_record::{OpenerParts, PartialMessage, Role, SealerParts, Suite, TrafficSecret};
use prost::Message;
use tokio::time::Instant;
use zeroize::{Zeroize as _, Zeroizing};

use super::wire::{
    DecodeError, EncodeError, Item, MAX_BUFFERED, MAX_BYTES, MAX_ITEM, MAX_STREAMS, MAX_U31, VERSION,
    at_most, bounded, count, index, micros,
};
use super::{http2, stream};
use crate::tunnel::{
    ConnectionWindowParts, KeyParts, RoundTripParts, TimerParts, TransportParts, TunnelParts, WindowUseParts,
};

/// Debug data of a GOAWAY that is kept.
const MAX_DEBUG: usize = 1024;
/// The longest message header that can be incomplete.
const MESSAGE_HEADER: usize = 4;

// === encoding ===

/// Encodes a tunnel whose transport is a socket: the first item is the tunnel itself, the others are its streams. An
/// application whose socket is lost on the way is reset. [`decode`] gives the parts back, should they be refused.
///
/// # Errors
/// The reason, with the parts unchanged.
pub fn encode(parts: TunnelParts) -> Result<Vec<Item>, (Box<TunnelParts>, EncodeError)> {
    let messages = match encode_all(&parts) {
        Ok(messages) => messages,
        Err(error) => return Err((Box::new(parts), error)),
    };
    let TunnelParts { transport, streams, .. } = parts;
    let transport = match transport {
        TransportParts::Tcp(tcp) => Some(OwnedFd::from(tcp)),
        TransportParts::Other(_) => None,
    };
    let apps = streams.into_iter().map(|stream| {
        let app = stream.copy.and_then(|copy| copy.app.take())?;
        // If this process ends before the socket has arrived, its end must not look proper.
        let _ = socket2::SockRef::from(&app).set_linger(Some(Duration::ZERO));
        Some(OwnedFd::from(app))
    });
    let sockets = std::iter::once(transport).chain(apps);
    Ok(messages.into_iter().zip(sockets).map(|(bytes, socket)| Item { bytes, socket }).collect())
}

fn encode_all(parts: &TunnelParts) -> Result<Vec<Zeroizing<Vec<u8>>>, EncodeError> {
    if !matches!(parts.transport, TransportParts::Tcp(_)) {
        return Err(EncodeError::Transport);
    }
    let mut message = tunnel(parts)?;
    let mut all = vec![bytes(&message, "buffers")?];
    if let Some(keys) = &mut message.keys {
        keys.sealer.iter_mut().chain(&mut keys.opener).for_each(|one| one.secret.zeroize());
    }
    for parts in &parts.streams {
        all.push(bytes(&stream::encode(parts)?, "unread bytes")?);
    }
    Ok(all)
}

/// With the room it takes from the beginning: a buffer that grows leaves copies of its secrets behind.
fn bytes(message: &impl Message, field: &'static str) -> Result<Zeroizing<Vec<u8>>, EncodeError> {
    let length = message.encoded_len();
    if length > MAX_ITEM {
        return Err(EncodeError::Field(field));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    message.encode(&mut *bytes).map_err(|_| EncodeError::Field(field))?;
    Ok(bytes)
}

fn tunnel(parts: &TunnelParts) -> Result<proto::Tunnel, EncodeError> {
    let TunnelParts {
        transport: _,
        keys,
        http2: connection,
        unwritten,
        owes_key_update,
        received,
        timers: TimerParts { silence, pinged, since_tick, idle },
        round_trip: RoundTripParts { sent, last },
        connection_window: ConnectionWindowParts { base, window_use: WindowUseParts { taken, since } },
        closing,
        goaway,
        streams,
        requests,
        client_limit,
        // The pause is over when the tunnel goes on.
        stopped: _,
    } = parts;
    if streams.len() > MAX_STREAMS || unwritten.len() > MAX_BUFFERED || received.len() > MAX_BUFFERED {
        return Err(EncodeError::Field("buffers"));
    }
    let last = last.map(|(time, since)| proto::RoundTrip { time: micros(time), since: micros(since) });
    Ok(proto::Tunnel {
        version: VERSION,
        streams: u32::try_from(streams.len()).unwrap_or(u32::MAX),
        keys: keys.as_ref().map(encode_keys),
        http2: Some(http2::encode(connection)?),
        unwritten: unwritten.clone(),
        owes_key_update: *owes_key_update,
        received: received.clone(),
        silence: micros(*silence),
        pinged: pinged.map(micros),
        since_tick: micros(*since_tick),
        round_trip_sent: sent.map(micros),
        round_trip: last,
        connection_window_base: *base,
        connection_window_taken: *taken,
        connection_window_since: since.map(micros),
        closing: *closing,
        goaway: goaway.as_ref().map(|(code, debug)| proto::GoAway { code: code.0, debug: debug.clone() }),
        requests: requests.iter().map(request).collect(),
        client_limit: client_limit.map(count),
        idle: idle.map(micros),
    })
}

fn request((stream, head): &(u32, RequestHead)) -> proto::Request {
    let field = |(name, value): (&[u8], &[u8])| proto::Field { name: name.to_vec(), value: value.to_vec() };
    proto::Request { stream: *stream, fields: head.fields.iter().map(field).collect() }
}

fn encode_keys(keys: &KeyParts) -> proto::Keys {
    let KeyParts { sealer, opener } = keys;
    let SealerParts { secret, sequence, closed } = sealer;
    let sealer = proto::Direction { secret: secret.expose().to_vec(), sequence: *sequence, closed: *closed };
    let suite = secret.suite();
    // The role is that of the HTTP/2 connection.
    let OpenerParts { secret, sequence, role: _, partial, idle_records, closed } = opener;
    let opener = proto::Direction { secret: secret.expose().to_vec(), sequence: *sequence, closed: *closed };
    let PartialMessage { header, header_len, missing } = partial;
    proto::Keys {
        suite: suite.code().into(),
        sealer: Some(sealer),
        opener: Some(opener),
        message_header: header[..usize::from(*header_len).min(MESSAGE_HEADER)].to_vec(),
        message_missing: *missing,
        idle_records: (*idle_records).into(),
    }
}

// === decoding ===

/// Decodes what [`encode`] made. The sockets need a runtime only when the tunnel is resumed.
///
/// # Errors
/// When the version is another one, or anything is missing, too long or out of its range. The sockets are closed, which
/// resets them unless the sender holds them, too.
pub fn decode(items: Vec<Item>) -> Result<TunnelParts, DecodeError> {
    let found = items.len();
    for item in &items {
        at_most(item.bytes.len(), MAX_ITEM, "length")?;
        let version = proto::Versioned::decode(item.bytes.as_slice())?.version;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
    }
    let mut items = items.into_iter();
    let first = items.next().ok_or(DecodeError::Items { expected: 1, found })?;
    let transport = first.socket.ok_or(DecodeError::Field("socket"))?;
    let message = proto::Tunnel::decode(first.bytes.as_slice())?;
    let expected = 1 + usize::try_from(message.streams).unwrap_or(MAX_STREAMS);
    if found != expected || expected > MAX_STREAMS {
        return Err(DecodeError::Items { expected, found });
    }
    let streams = items.map(stream::decode).collect::<Result<Vec<_>, _>>()?;
    let mut parts = tunnel_from(message, TransportParts::Tcp(TcpStream::from(transport)))?;
    parts.streams = streams;
    check_streams(&parts)?;
    Ok(parts)
}

fn tunnel_from(message: proto::Tunnel, transport: TransportParts) -> Result<TunnelParts, DecodeError> {
    let proto::Tunnel {
        version: _,
        streams: _,
        keys,
        http2: connection,
        unwritten,
        owes_key_update,
        received,
        silence,
        pinged,
        since_tick,
        round_trip_sent,
        round_trip,
        connection_window_base,
        connection_window_taken,
        connection_window_since,
        closing,
        goaway,
        requests,
        client_limit,
        idle,
    } = message;
    let connection = http2::decode(connection.ok_or(DecodeError::Field("http/2 connection"))?)?;
    let role = connection.role;
    let goaway = match goaway {
        Some(goaway) => Some((Code(goaway.code), bounded(goaway.debug, MAX_DEBUG, "goaway")?)),
        None => None,
    };
    let since = Duration::from_micros;
    Ok(TunnelParts {
        transport,
        keys: keys.map(|keys| keys_from(keys, role)).transpose()?,
        http2: connection,
        unwritten: bounded(unwritten, MAX_BUFFERED, "unwritten records")?,
        owes_key_update,
        received: bounded(received, MAX_BUFFERED, "received records")?,
        timers: TimerParts {
            silence: since(silence),
            pinged: pinged.map(since),
            since_tick: since(since_tick),
            idle: idle.map(since),
        },
        round_trip: RoundTripParts {
            sent: round_trip_sent.map(since),
            last: round_trip.map(|trip| (since(trip.time), since(trip.since))),
        },
        connection_window: ConnectionWindowParts {
            base: at_most(connection_window_base, MAX_U31, "connection window")?,
            window_use: WindowUseParts {
                taken: at_most(connection_window_taken, MAX_BYTES, "connection window")?,
                since: connection_window_since.map(since),
            },
        },
        closing,
        goaway,
        streams: Vec::new(),
        requests: requests_from(requests)?,
        client_limit: client_limit.map(|limit| index(limit, "limit")).transpose()?,
        stopped: Instant::now(),
    })
}

fn requests_from(messages: Vec<proto::Request>) -> Result<Vec<(u32, RequestHead)>, DecodeError> {
    bounded(messages, MAX_STREAMS, "requests")?.into_iter().map(request_from).collect()
}

fn request_from(message: proto::Request) -> Result<(u32, RequestHead), DecodeError> {
    let mut fields = Fields::new();
    for proto::Field { name, value } in message.fields {
        fields.push(&name, &value);
    }
    let head = RequestHead::new(fields).map_err(|_| DecodeError::Field("request"))?;
    Ok((message.stream, head))
}

fn keys_from(mut message: proto::Keys, role: Http2Role) -> Result<KeyParts, DecodeError> {
    let invalid = DecodeError::Field("keys");
    let suite = u16::try_from(message.suite).ok().and_then(Suite::from_code);
    let (Some(suite), Some(sealer), Some(opener)) = (suite, message.sealer.take(), message.opener.take())
    else {
        return Err(invalid);
    };
    let (sealer_secret, opener_secret) = (Zeroizing::new(sealer.secret), Zeroizing::new(opener.secret));
    let secret = |bytes: &[u8]| TrafficSecret::new(suite, bytes).map_err(|_| DecodeError::Field("keys"));
    let mut partial = PartialMessage { missing: message.message_missing, ..PartialMessage::default() };
    let header = partial.header.get_mut(..message.message_header.len()).ok_or(invalid)?;
    header.copy_from_slice(&message.message_header);
    partial.header_len = u8::try_from(message.message_header.len()).unwrap_or_default();
    Ok(KeyParts {
        sealer: SealerParts {
            secret: secret(&sealer_secret)?,
            sequence: sealer.sequence,
            closed: sealer.closed,
        },
        opener: OpenerParts {
            secret: secret(&opener_secret)?,
            sequence: opener.sequence,
            role: if role == Http2Role::Server { Role::Server } else { Role::Client },
            partial,
            idle_records: u8::try_from(message.idle_records).map_err(|_| DecodeError::Field("keys"))?,
            closed: opener.closed,
        },
    })
}

/// Streams and requests must be of one another.
fn check_streams(parts: &TunnelParts) -> Result<(), DecodeError> {
    let ascending = parts.streams.windows(2).all(|pair| pair[0].id < pair[1].id);
    let waits = |id: u32| parts.requests.iter().any(|(request, _)| *request == id);
    let match_up = parts.streams.iter().all(|stream| stream.copy.is_some() != waits(stream.id));
    let waiting = parts.streams.iter().filter(|stream| stream.copy.is_none()).count();
    if ascending && match_up && waiting == parts.requests.len() {
        Ok(())
    } else {
        Err(DecodeError::Field("streams"))
    }
}
