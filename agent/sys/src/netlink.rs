//! Blocking netlink sockets for netfilter, which no client crate covers. The kernel queues the answer to a netfilter
//! request before `send` returns, so nothing ever waits and no runtime is needed. A socket stays in the namespace it
//! was made in.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

use crate::Error;
use crate::netns::Netns;

/// Attempts of a dump that concurrent changes interrupt.
const MAX_DUMPS: usize = 16;

/// A message of a protocol that no library types: its kind and its bytes after the netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) kind: u16,
    pub(crate) bytes: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }
    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }
    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self { kind: header.message_type, bytes: payload.to_vec() })
    }
}

/// The attributes (kind without flags, value) in a message's bytes after its fixed part.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Encodes an attribute.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A netlink socket of one protocol inside one namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    pub(crate) fn open(netns: &Netns, protocol: isize) -> Result<Self, Error> {
        let failed = || Error::on("open netlink socket in", netns.id());
        let mut socket = netns.run(|| Socket::new(protocol))?.map_err(failed())?;
        socket.bind_auto().map_err(failed())?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed())?;
        Ok(Self { socket })
    }

    /// Sends bytes as they are: one or more whole messages.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one datagram and splits it into messages.
    pub(crate) fn receive<M: NetlinkDeserializable>(&self) -> io::Result<Vec<NetlinkMessage<M>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            // Messages are aligned to four bytes (NLMSG_ALIGN); the last one need not be padded.
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }

    /// Receives everything that the kernel has queued.
    pub(crate) fn pending<M: NetlinkDeserializable>(&self) -> io::Result<Vec<NetlinkMessage<M>>> {
        self.socket.set_non_blocking(true)?;
        let mut messages = Vec::new();
        loop {
            match self.receive() {
                Ok(more) => messages.extend(more),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(messages),
                Err(e) => return Err(e),
            }
        }
    }

    /// Sends a request for one object, or with `NLM_F_ACK` a command, and returns the first answer.
    pub(crate) fn request(&self, message: Raw, flags: u16) -> io::Result<Option<Raw>> {
        self.send(&encode(message, flags, 1))?;
        for reply in self.pending::<Raw>()? {
            match reply.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Sends a dump request and receives all of its answers. Repeated when the objects changed meanwhile: the kernel
    /// marks such a dump with `NLM_F_DUMP_INTR`, and it may have skipped entries.
    pub(crate) fn dump<M>(&self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..MAX_DUMPS {
            if let Some(found) = self.dump_once(message.clone())? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the objects change faster than they can be listed"))
    }

    fn dump_once<M>(&self, message: M) -> io::Result<Option<Vec<M>>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(&encode(message, NLM_F_DUMP, 1))?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            for reply in self.receive::<M>()? {
                interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
                match reply.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => {
                        return Ok((!interrupted).then_some(found));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Serializes one message, padded to netlink's alignment.
pub(crate) fn encode<M: NetlinkSerializable>(message: M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}
