//! HPACK (RFC 7541): a full decoder, and an encoder that keeps no state.
//!
//! Knows bytes and field lists. What a field means, and whether it is allowed, is decided in [`crate::head`].

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod huffman;
pub(crate) mod integer;
pub(crate) mod static_table;

#[cfg(test)]
mod tests;

/// Why a field block could not be decoded. All but [`Self::Bomb`] are COMPRESSION_ERROR: the state that both ends share is
/// lost, and the connection with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a representation.
    #[error("field block ends inside a representation")]
    Truncated,
    /// An integer is larger than 2^31-1 or encoded in too many bytes.
    #[error("hpack integer overflow")]
    Integer,
    /// An index of neither table.
    #[error("hpack index {0} is in no table")]
    Index(u32),
    /// The Huffman code holds the end-of-string symbol or wrong padding.
    #[error("invalid huffman code")]
    Huffman,
    /// A table size update above the advertised limit, after the first field, or a third one in a block.
    #[error("invalid dynamic table size update")]
    SizeUpdate,
    /// The decoded fields are many times larger than the advertised header list size.
    #[error("field block decodes to many times the header list size")]
    Bomb,
}
