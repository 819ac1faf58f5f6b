//! The HPACK encoder: static indexes, and literals without indexing and without Huffman coding.
//!
//! It keeps no dynamic table, so nothing it sends depends on what it sent before.

use super::integer;
use super::static_table;

/// A table size update to 0. It must open the first block after the peer lowered HEADER_TABLE_SIZE (RFC 7541 §4.2).
pub(crate) fn empty_table(out: &mut Vec<u8>) {
    out.push(0x20);
}

/// A field that the static table has with its value.
pub(crate) fn indexed(index: u32, out: &mut Vec<u8>) {
    integer::encode(index, 7, 0x80, out);
}

/// A value whose name is in the static table.
pub(crate) fn named(index: u32, value: &[u8], out: &mut Vec<u8>) {
    integer::encode(index, 4, 0, out);
    string(value, out);
}

/// A field as two literals.
pub(crate) fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    string(name, out);
    string(value, out);
}

/// The `:status` of a response.
pub(crate) fn status(code: u16, out: &mut Vec<u8>) {
    match static_table::status(code) {
        Some(index) => indexed(index, out),
        None => {
            let digits =
                [code / 100 % 10, code / 10 % 10, code % 10].map(|digit| b'0' + digit.to_le_bytes()[0]);
            named(static_table::STATUS, &digits, out);
        }
    }
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(u32::try_from(text.len()).unwrap_or(u32::MAX), 7, 0, out);
    out.extend_from_slice(text);
}
