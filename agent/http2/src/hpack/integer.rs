//! Integers with a prefix (RFC 7541 §5.1).

use super::HpackError;

/// Largest value accepted; nothing in HTTP/2 needs more.
const MAX: u64 = (1 << 31) - 1;

/// Continuation bytes that are read at most: enough for [`MAX`], so that zero-padded encodings end as well.
const MAX_BYTES: usize = 5;

/// Reads an integer whose prefix is the lower `prefix` bits of the first byte, and advances `input` behind it.
///
/// # Errors
/// When the input ends inside the integer, or the value overflows.
pub(crate) fn decode(input: &mut &[u8], prefix: u32) -> Result<u32, HpackError> {
    let (first, mut rest) = input.split_first().ok_or(HpackError::Truncated)?;
    let mask = u8::MAX >> (8 - prefix);
    let mut value = u64::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        for count in 0.. {
            if count == MAX_BYTES {
                return Err(HpackError::Integer);
            }
            let (byte, behind) = rest.split_first().ok_or(HpackError::Truncated)?;
            rest = behind;
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *input = rest;
    if value > MAX {
        return Err(HpackError::Integer);
    }
    u32::try_from(value).map_err(|_| HpackError::Integer)
}

/// Writes an integer with a prefix of `prefix` bits; `pattern` is the rest of the first byte.
pub(crate) fn encode(value: u32, prefix: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = u8::MAX >> (8 - prefix);
    if value < u32::from(mask) {
        out.push(pattern | value.to_le_bytes()[0]);
        return;
    }
    out.push(pattern | mask);
    let mut rest = value - u32::from(mask);
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}
