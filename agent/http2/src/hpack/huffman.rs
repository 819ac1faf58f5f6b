//! The Huffman code of HPACK (RFC 7541 §5.2 and appendix B).
//!
//! The code is canonical: codes of one length count upwards in the order of their symbols, and the first of a length
//! follows the last of the one before. The lengths are therefore the whole table. The decoder is an automaton over four
//! bits at a time, built from them at compile time; no code is shorter than five bits, so a step emits at most one symbol.
//! Our own encoder does not use the code: labels are sent once per stream, and its time would cost more than their bytes.

use super::HpackError;

/// Code lengths in bits of the 256 symbols, and of the end-of-string symbol behind them.
#[rustfmt::skip]
pub(crate) const CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const EOS: usize = 256;
const MAX_LENGTH: u8 = 30;
/// A binary tree with 257 leaves has 256 inner nodes.
const NODES: usize = 256;
/// In the tree, a child at or above this is the leaf of the symbol above it.
const LEAF: u16 = 256;

/// What four bits do in a state.
#[derive(Clone, Copy)]
struct Step {
    next: u8,
    emits: bool,
    fails: bool,
    symbol: u8,
}

static STEPS: [[Step; 16]; NODES] = steps();
/// The states in which a text may end: after up to seven bits of padding, all of them ones.
static FINAL: [bool; NODES] = finals();

pub(crate) const fn codes() -> [u32; 257] {
    let mut codes = [0; 257];
    let mut code = 0;
    let mut length = 1;
    while length <= MAX_LENGTH {
        code <<= 1;
        let mut symbol = 0;
        while symbol <= EOS {
            if CODE_LENGTHS[symbol] == length {
                codes[symbol] = code;
                code += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    codes
}

const fn tree() -> [[u16; 2]; NODES] {
    let codes = codes();
    let mut tree = [[0; 2]; NODES];
    let mut used = 1;
    let mut symbol = 0;
    while symbol <= EOS {
        let mut node = 0;
        let mut left = CODE_LENGTHS[symbol];
        while left > 1 {
            left -= 1;
            let bit = (codes[symbol] >> left & 1) as usize;
            // The root is no node's child, so 0 means that there is none yet.
            if tree[node][bit] == 0 {
                tree[node][bit] = used;
                used += 1;
            }
            node = tree[node][bit] as usize;
        }
        #[expect(clippy::cast_possible_truncation, reason = "256 at most")]
        let leaf = symbol as u16 + LEAF;
        tree[node][(codes[symbol] & 1) as usize] = leaf;
        symbol += 1;
    }
    tree
}

const fn step(tree: &[[u16; 2]; NODES], from: usize, bits: usize) -> Step {
    let mut step = Step { next: 0, emits: false, fails: false, symbol: 0 };
    let mut node = from;
    let mut left = 4;
    while left > 0 {
        left -= 1;
        let child = tree[node][bits >> left & 1];
        if child == LEAF + 256 {
            step.fails = true;
            return step;
        }
        if child >= LEAF {
            step.emits = true;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "below 256, as it is not the end of the string"
            )]
            {
                step.symbol = (child - LEAF) as u8;
            }
            node = 0;
        } else {
            node = child as usize;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "there are 256 nodes")]
    {
        step.next = node as u8;
    }
    step
}

const fn steps() -> [[Step; 16]; NODES] {
    let tree = tree();
    let mut steps = [[Step { next: 0, emits: false, fails: false, symbol: 0 }; 16]; NODES];
    let mut node = 0;
    while node < NODES {
        let mut bits = 0;
        while bits < 16 {
            steps[node][bits] = step(&tree, node, bits);
            bits += 1;
        }
        node += 1;
    }
    steps
}

const fn finals() -> [bool; NODES] {
    let tree = tree();
    let mut finals = [false; NODES];
    let mut node = 0;
    let mut ones = 0;
    while ones < 8 {
        finals[node] = true;
        node = tree[node][1] as usize;
        ones += 1;
    }
    finals
}

/// Appends the decoded text to `out`.
///
/// # Errors
/// When the text contains the end-of-string symbol, or its padding is longer than seven bits or not all ones.
pub(crate) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let mut node = 0_u8;
    for byte in text {
        for bits in [byte >> 4, byte & 15] {
            let step = STEPS[usize::from(node)][usize::from(bits)];
            if step.fails {
                return Err(HpackError::Huffman);
            }
            if step.emits {
                out.push(step.symbol);
            }
            node = step.next;
        }
    }
    if FINAL[usize::from(node)] { Ok(()) } else { Err(HpackError::Huffman) }
}
