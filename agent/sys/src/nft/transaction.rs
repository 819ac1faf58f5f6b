//! Commits a transaction: all commands between batch begin and end in one datagram, which the kernel applies or
//! rejects as a whole.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NetlinkPayload};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::command::Command;
use super::error::Error;
use super::message;
use crate::netlink::{self, Netlink};
use crate::netns::Netns;

/// Applies all of the commands, to `inet` tables, or none.
pub(super) fn commit(netns: &Netns, commands: &[Command]) -> Result<(), Error> {
    commit_to(netns, NetfilterProtoFamily::Inet, commands)
}

/// As [`commit`], to tables of this family.
pub(super) fn commit_to(
    netns: &Netns,
    family: NetfilterProtoFamily,
    commands: &[Command],
) -> Result<(), Error> {
    if commands.is_empty() {
        return Ok(());
    }
    let failed = |cause| Error::Transaction { netns: netns.id().to_string(), cause };
    let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
    netlink.send(&encode(family, commands)?).map_err(failed)?;
    // The kernel reports every refused command, and acks the last one, which carries NLM_F_ACK. It has queued all of
    // that before `send` returned.
    let replies = netlink.pending::<NetfilterMessage>().map_err(failed)?;
    let mut outcomes = replies.into_iter().filter_map(|reply| match reply.payload {
        NetlinkPayload::Error(error) => Some((reply.header.sequence_number, error)),
        _ => None,
    });
    let mut acknowledged = false;
    let refused = outcomes.find(|(_, error)| {
        acknowledged |= error.code.is_none();
        error.code.is_some()
    });
    match refused {
        Some((sequence, error)) => Err(match command_of(sequence, commands) {
            Some(command) => Error::Refused { command: command.to_string(), cause: error.to_io() },
            None => failed(error.to_io()),
        }),
        None if acknowledged => Ok(()),
        None => Err(failed(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the kernel has not acknowledged the transaction",
        ))),
    }
}

/// Sequence number 0 is the batch begin, 1 the first command.
fn command_of(sequence: u32, commands: &[Command]) -> Option<&Command> {
    usize::try_from(sequence).ok()?.checked_sub(1).and_then(|at| commands.get(at))
}

fn encode(family: NetfilterProtoFamily, commands: &[Command]) -> Result<Vec<u8>, Error> {
    let mut bytes = netlink::encode(message::begin(), 0, 0);
    let mut sequence = 0;
    for (at, command) in commands.iter().enumerate() {
        sequence += 1;
        let (mut message, flags) = message::command(command, sequence)?;
        message.header.family = family;
        let ack = if at + 1 == commands.len() { NLM_F_ACK } else { 0 };
        bytes.extend(netlink::encode(message, flags | ack, sequence));
    }
    bytes.extend(netlink::encode(message::end(), 0, sequence + 1));
    Ok(bytes)
}
