//! The HPACK decoder.
//!
//! Owns the dynamic table and its limits. A header list above the limit is decoded to its end, so that the table stays in
//! step with the encoder's, but no longer stored; one far above it ends the connection.

use std::collections::VecDeque;

use super::static_table::ENTRIES;
use super::{HpackError, huffman, integer};
use crate::fields::{FIELD_OVERHEAD, Fields};

/// Size of the dynamic table before any SETTINGS (RFC 9113 §6.5.2).
pub(crate) const DEFAULT_TABLE_SIZE: u32 = 4096;

/// A list of more than this many times the limit is an attack, not a mistake.
const BOMB_FACTOR: usize = 4;

/// Table size updates in one block: a minimum and a final size (RFC 7541 §4.2).
const MAX_SIZE_UPDATES: u32 = 2;

/// Name and value of an entry of the dynamic table.
pub type TableEntry = (Vec<u8>, Vec<u8>);

/// The receiving end's half of the compression state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoder {
    /// Newest first.
    table: VecDeque<TableEntry>,
    /// The sum of the entries, each with its overhead.
    size: usize,
    /// What the encoder chose, at most `limit`.
    max_size: u32,
    /// What we advertised and the peer acknowledged.
    limit: u32,
}

/// What a block was decoded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// The fields, as far as they were within the limit.
    pub fields: Fields,
    /// The list was larger than the limit, and fields are missing.
    pub oversize: bool,
}

/// How a literal is to be treated.
#[derive(Clone, Copy)]
struct Literal {
    prefix: u32,
    indexed: bool,
}

/// One block while it is decoded.
struct Block {
    decoded: Decoded,
    /// Size of the list so far, stored or not.
    size: usize,
    max_list: usize,
}

// === impl Decoder ===

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), size: 0, max_size: DEFAULT_TABLE_SIZE, limit: DEFAULT_TABLE_SIZE }
    }
}

impl Decoder {
    /// A decoder with these entries, newest first.
    #[must_use]
    pub(crate) fn from_parts(table: Vec<TableEntry>, max_size: u32, limit: u32) -> Self {
        let size = table.iter().map(|(name, value)| entry_size(name, value)).sum();
        let mut decoder = Self { table: table.into(), size, max_size: max_size.min(limit), limit };
        decoder.evict();
        decoder
    }

    /// The entries of the dynamic table, newest first; the size that the encoder chose; the limit.
    #[must_use]
    pub(crate) fn into_parts(self) -> (Vec<TableEntry>, u32, u32) {
        (self.table.into(), self.max_size, self.limit)
    }

    /// The peer acknowledged our HEADER_TABLE_SIZE. An encoder that uses the table must answer a lower limit with a size
    /// update; one that does not use it often sends none, which is harmless and therefore not required here.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
        self.max_size = self.max_size.min(limit);
        self.evict();
    }

    /// The size of the dynamic table now.
    #[cfg(test)]
    pub(crate) fn table_size(&self) -> usize {
        self.size
    }

    /// Decodes one complete field block; `max_list` is the header list size that we advertised.
    ///
    /// # Errors
    /// When the block is invalid. The decoder must not be used afterwards.
    pub(crate) fn decode(&mut self, mut input: &[u8], max_list: usize) -> Result<Decoded, HpackError> {
        let decoded = Decoded { fields: Fields::new(), oversize: false };
        let mut block = Block { decoded, size: 0, max_list };
        self.size_updates(&mut input)?;
        while let Some(first) = input.first() {
            match first {
                0x80.. => {
                    let index = integer::decode(&mut input, 7)?;
                    let (name, value) = self.entry(index)?;
                    block.push(name, value)?;
                }
                0x40..=0x7f => self.literal(&mut input, Literal { prefix: 6, indexed: true }, &mut block)?,
                0x20..=0x3f => return Err(HpackError::SizeUpdate),
                // Without indexing, and never indexed: the same to a receiver that forwards no field.
                0x00..=0x1f => self.literal(&mut input, Literal { prefix: 4, indexed: false }, &mut block)?,
            }
        }
        Ok(block.decoded)
    }

    fn size_updates(&mut self, input: &mut &[u8]) -> Result<(), HpackError> {
        for _ in 0..MAX_SIZE_UPDATES {
            if input.first().is_none_or(|first| first & 0xe0 != 0x20) {
                break;
            }
            let size = integer::decode(input, 5)?;
            if size > self.limit {
                return Err(HpackError::SizeUpdate);
            }
            self.max_size = size;
            self.evict();
        }
        Ok(())
    }

    fn literal(&mut self, input: &mut &[u8], literal: Literal, block: &mut Block) -> Result<(), HpackError> {
        let index = integer::decode(input, literal.prefix)?;
        block.decoded.fields.push_with(|out| {
            if index == 0 {
                string(input, out)?;
            } else {
                out.extend_from_slice(self.entry(index)?.0);
            }
            let name_end = out.len();
            string(input, out)?;
            Ok(name_end)
        })?;
        if literal.indexed
            && let Some((name, value)) = block.decoded.fields.last()
        {
            self.insert(name, value);
        }
        block.pushed()
    }

    fn entry(&self, index: u32) -> Result<(&[u8], &[u8]), HpackError> {
        let at = (index as usize).checked_sub(1).ok_or(HpackError::Index(index))?;
        if let Some((name, value)) = ENTRIES.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let (name, value) = self.table.get(at - ENTRIES.len()).ok_or(HpackError::Index(index))?;
        Ok((name, value))
    }

    /// An entry larger than the table empties it and is not stored (RFC 7541 §4.4).
    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = entry_size(name, value);
        if size > self.max_size as usize {
            self.table.clear();
            self.size = 0;
            return;
        }
        self.size += size;
        self.table.push_front((name.to_vec(), value.to_vec()));
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.max_size as usize {
            let Some((name, value)) = self.table.pop_back() else { break };
            self.size -= entry_size(&name, &value);
        }
    }
}

// === impl Block ===

impl Block {
    fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), HpackError> {
        self.decoded.fields.push(name, value);
        self.pushed()
    }

    /// Counts the field that was just stored, and removes it when it is beyond the limit.
    fn pushed(&mut self) -> Result<(), HpackError> {
        if let Some((name, value)) = self.decoded.fields.last() {
            self.size += entry_size(name, value);
        }
        if self.size > self.max_list {
            self.decoded.fields.pop();
            self.decoded.oversize = true;
        }
        if self.size > self.max_list.saturating_mul(BOMB_FACTOR) {
            return Err(HpackError::Bomb);
        }
        Ok(())
    }
}

fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + FIELD_OVERHEAD
}

/// Reads a string literal (RFC 7541 §5.2) to the end of `out`.
fn string(input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let coded = input.first().ok_or(HpackError::Truncated)? & 0x80 != 0;
    let length = integer::decode(input, 7)? as usize;
    let (text, rest) = input.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *input = rest;
    if coded {
        return huffman::decode(text, out);
    }
    out.extend_from_slice(text);
    Ok(())
}
