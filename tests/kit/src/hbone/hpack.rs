//! As much of HPACK (RFC 7541) as a scripted peer needs: literals out; literals, the first static entries and
//! Huffman-coded printable text in. No dynamic table: a peer that received HEADER_TABLE_SIZE 0 must not use one.

use anyhow::{Context, Result, bail, ensure};

/// The pseudo headers' part of the static table (RFC 7541 appendix A), from index 1.
const STATIC: [(&str, &str); 14] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
];

/// The Huffman code (RFC 7541 appendix B) is canonical: the codes of one length follow each other in this order, and
/// the first of a length follows the last of the shorter ones. Unprintable symbols, but for NUL, have longer codes.
const HUFFMAN: [(u32, &[u8]); 11] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\"),
];

/// Header fields as literals that are not indexed, without Huffman coding.
#[must_use]
pub fn encode(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            integer_out(&mut out, text.len(), 7);
            out.extend(text.bytes());
        }
    }
    out
}

/// Header fields in their order.
pub fn decode(block: &[u8]) -> Result<Vec<(String, String)>> {
    let mut rest = block;
    let mut headers = Vec::new();
    while let Some(first) = rest.first().copied() {
        match first {
            0x80.. => {
                let (name, value) = entry(integer(&mut rest, 7)?)?;
                headers.push((name.to_owned(), value.to_owned()));
            }
            0x20..0x40 => {
                let size = integer(&mut rest, 5)?;
                ensure!(size == 0, "a dynamic table of {size} bytes was forbidden");
            }
            _ => {
                // With indexing the reference is 6 bits wide, else 4.
                let index = integer(&mut rest, if first & 0x40 == 0 { 4 } else { 6 })?;
                let name = if index == 0 { string(&mut rest)? } else { entry(index)?.0.to_owned() };
                headers.push((name, string(&mut rest)?));
            }
        }
    }
    Ok(headers)
}

fn entry(index: usize) -> Result<(&'static str, &'static str)> {
    let at = index.checked_sub(1).context("index 0")?;
    STATIC.get(at).copied().with_context(|| format!("index {index}: beyond what was expected of a tunnel"))
}

fn string(rest: &mut &[u8]) -> Result<String> {
    let huffman = rest.first().context("no string")? & 0x80 != 0;
    let len = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(len).context("a string is cut off")?;
    *rest = tail;
    Ok(String::from_utf8(if huffman { unhuffman(text)? } else { text.to_vec() })?)
}

fn unhuffman(text: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let (mut code, mut bits) = (0u32, 0u32);
    for byte in text {
        for at in (0..8).rev() {
            code = code << 1 | u32::from(byte >> at & 1);
            bits += 1;
            if let Some(symbol) = symbol(code, bits) {
                out.push(symbol);
                (code, bits) = (0, 0);
            }
            ensure!(bits <= 19, "a Huffman code of an unprintable symbol");
        }
    }
    ensure!(bits < 8 && code == (1 << bits) - 1, "bad Huffman padding");
    Ok(out)
}

fn symbol(code: u32, bits: u32) -> Option<u8> {
    let (mut first, mut length) = (0u32, 0u32);
    for (len, symbols) in HUFFMAN {
        first <<= len - length;
        length = len;
        if len == bits {
            return symbols.get(usize::try_from(code.checked_sub(first)?).ok()?).copied();
        }
        first += u32::try_from(symbols.len()).ok()?;
    }
    None
}

fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize> {
    let max = (1usize << prefix) - 1;
    let mut take = || -> Result<u8> {
        let (first, tail) = rest.split_first().context("an integer is cut off")?;
        *rest = tail;
        Ok(*first)
    };
    let mut value = usize::from(take()?) & max;
    if value < max {
        return Ok(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = take()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("an integer is too long")
}

fn integer_out(out: &mut Vec<u8>, value: usize, prefix: u32) {
    let max = (1usize << prefix) - 1;
    let byte = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    if value < max {
        out.push(byte(value));
        return;
    }
    out.push(byte(max));
    let mut left = value - max;
    while left >= 0x80 {
        out.push(byte(left & 0x7f | 0x80));
        left >>= 7;
    }
    out.push(byte(left));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hbone::hex;

    #[test]
    fn examples_of_the_rfc_are_decoded() {
        // RFC 7541 C.2.1, C.4.1 (with the dynamic index left aside), C.6.1's cache-control value.
        let custom = hex("400a637573746f6d2d6b65790d637573746f6d2d686561646572");
        assert_eq!(decode(&custom).unwrap(), [("custom-key".to_owned(), "custom-header".to_owned())]);
        let request = decode(&hex("828684418cf1e3c2e5f23a6ba0ab90f4ff")).unwrap();
        let want =
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        assert_eq!(request, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(
            unhuffman(&hex("9d29ad171863c78f0b97c8e9ae82ae43d3")).unwrap(),
            b"https://www.example.com"
        );
        assert_eq!(
            unhuffman(&hex("d07abe941054d444a8200595040b8166e082a62d1bff")).unwrap(),
            b"Mon, 21 Oct 2013 20:13:21 GMT"
        );
    }

    #[test]
    fn encoded_fields_decode_to_themselves() {
        let long = "x".repeat(400);
        let headers = [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), ("baggage", long.as_str())];
        let want = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(decode(&encode(&headers)).unwrap(), want);
        assert!(decode(&[0xbe]).is_err(), "a dynamic entry");
    }
}
