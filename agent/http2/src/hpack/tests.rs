//! HPACK against the examples of RFC 7541 appendix C, and against damage.

use super::decode::Decoder;
use super::{HpackError, encode, huffman, integer};
use crate::fields::Fields;

const LIST: usize = 16_384;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn huffman_encode(text: &[u8]) -> Vec<u8> {
    let codes = huffman::codes();
    let mut bits = String::new();
    for byte in text {
        let symbol = usize::from(*byte);
        bits += &format!("{:0width$b}", codes[symbol], width = usize::from(huffman::CODE_LENGTHS[symbol]));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
        .collect()
}

fn huffman_decode(code: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut out = Vec::new();
    huffman::decode(code, &mut out).map(|()| out)
}

/// Blocks that are decoded one after the other by one decoder, each with its fields and the size of the table after it.
type Example = (u32, &'static [(&'static str, &'static [(&'static str, &'static str)], usize)]);

const GET: (&str, &str) = (":method", "GET");
const HTTP: (&str, &str) = (":scheme", "http");
const HOST: (&str, &str) = (":authority", "www.example.com");
const PRIVATE: (&str, &str) = ("cache-control", "private");
const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const DATE2: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const LOCATION: (&str, &str) = ("location", "https://www.example.com");
const COOKIE: (&str, &str) = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
const REQUEST3: [(&str, &str); 5] =
    [GET, (":scheme", "https"), (":path", "/index.html"), HOST, ("custom-key", "custom-value")];
const RESPONSE3: [(&str, &str); 6] =
    [(":status", "200"), PRIVATE, DATE2, LOCATION, ("content-encoding", "gzip"), COOKIE];

#[rustfmt::skip]
const EXAMPLES: [Example; 8] = [
    // C.2.1 to C.2.4
    (4096, &[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", &[("custom-key", "custom-header")], 55)]),
    (4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0)]),
    (4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], 0)]),
    (4096, &[("82", &[GET], 0)]),
    // C.3
    (4096, &[
        ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", &[GET, HTTP, (":path", "/"), HOST], 57),
        ("8286 84be 5808 6e6f 2d63 6163 6865", &[GET, HTTP, (":path", "/"), HOST, ("cache-control", "no-cache")], 110),
        ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", &REQUEST3, 164),
    ]),
    // C.4
    (4096, &[
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", &[GET, HTTP, (":path", "/"), HOST], 57),
        ("8286 84be 5886 a8eb 1064 9cbf", &[GET, HTTP, (":path", "/"), HOST, ("cache-control", "no-cache")], 110),
        ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", &REQUEST3, 164),
    ]),
    // C.5, with a table of 256
    (256, &[
        ("4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
          546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", &[(":status", "302"), PRIVATE, DATE, LOCATION], 222),
        ("4803 3330 37c1 c0bf", &[(":status", "307"), PRIVATE, DATE, LOCATION], 222),
        ("88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
          6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
          2076 6572 7369 6f6e 3d31", &RESPONSE3, 215),
    ]),
    // C.6, with a table of 256
    (256, &[
        ("4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
          8f0b 97c8 e9ae 82ae 43d3", &[(":status", "302"), PRIVATE, DATE, LOCATION], 222),
        ("4883 640e ffc1 c0bf", &[(":status", "307"), PRIVATE, DATE, LOCATION], 222),
        ("88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
          dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07", &RESPONSE3, 215),
    ]),
];

#[test]
fn the_examples_of_appendix_c_are_decoded() {
    for (limit, blocks) in EXAMPLES {
        let mut decoder = Decoder::default();
        decoder.set_limit(limit);
        for (block, fields, size) in blocks {
            let decoded = decoder.decode(&hex(block), LIST).unwrap();
            assert_eq!(decoded.fields, fields.iter().copied().collect::<Fields>(), "{block}");
            assert!(!decoded.oversize);
            assert_eq!(decoder.table_size(), *size, "{block}");
            let (table, max_size, limit) = decoder.into_parts();
            decoder = Decoder::from_parts(table, max_size, limit);
        }
    }
}

#[test]
fn integers_are_those_of_appendix_c_1() {
    for (value, prefix, code) in
        [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a"), (0x7fff_ffff, 7, "7f80ffffff07")]
    {
        let mut out = Vec::new();
        integer::encode(value, prefix, 0, &mut out);
        assert_eq!(out, hex(code));
        let mut input = out.as_slice();
        assert_eq!(integer::decode(&mut input, prefix), Ok(value));
        assert!(input.is_empty());
        for end in 0..out.len() {
            assert_eq!(integer::decode(&mut &out[..end], prefix), Err(HpackError::Truncated), "{code} {end}");
        }
    }
    for overflow in ["7f81ffffff07", "7fffffffff0f", "7fffffffffffffffffff01", "7f808080808000"] {
        assert_eq!(integer::decode(&mut hex(overflow).as_slice(), 7), Err(HpackError::Integer), "{overflow}");
    }
}

#[test]
fn every_huffman_code_is_decoded_after_every_other() {
    let sum: u64 = huffman::CODE_LENGTHS.iter().map(|length| 1_u64 << (32 - length)).sum();
    assert_eq!(sum, 1 << 32, "the code is complete");
    for first in 0..=255_u8 {
        for second in 0..=255_u8 {
            let text = [first, second, first];
            assert_eq!(huffman_decode(&huffman_encode(&text)).as_deref(), Ok(&text[..]));
        }
    }
}

#[test]
fn huffman_padding_is_short_and_ones_and_the_end_symbol_is_refused() {
    assert_eq!(huffman_decode(&[]), Ok(Vec::new()));
    // 'a' is 00011: three bits of padding.
    assert_eq!(huffman_decode(&[0b0001_1111]), Ok(b"a".to_vec()));
    for wrong in [&[0b0001_1110][..], &[0b0001_1000], &[0b0001_1111, 0xff], &[0xff], &[0xff; 4]] {
        assert_eq!(huffman_decode(wrong), Err(HpackError::Huffman), "{wrong:?}");
    }
    // '0' is 00000 and needs its padding; '!' is 1111111000 and ends within it.
    assert_eq!(huffman_decode(&[0xfe, 0x3f]), Ok(b"!".to_vec()));
    assert_eq!(huffman_decode(&[0xfe]), Err(HpackError::Huffman));
}

#[test]
fn damaged_blocks_are_refused() {
    let cases: [(&str, HpackError); 9] = [
        ("80", HpackError::Index(0)),
        ("be", HpackError::Index(62)),
        ("7e 00", HpackError::Index(62)),
        ("ff", HpackError::Truncated),
        ("40 0a 61", HpackError::Truncated),
        ("00 01 61 81", HpackError::Truncated),
        ("82 20", HpackError::SizeUpdate),
        ("20 20 20", HpackError::SizeUpdate),
        ("3f e2 1f", HpackError::SizeUpdate),
    ];
    for (block, error) in cases {
        assert_eq!(Decoder::default().decode(&hex(block), LIST), Err(error), "{block}");
    }
    assert!(Decoder::default().decode(&hex("20 3f e1 1f 82"), LIST).is_ok(), "4096 is the limit");
}

#[test]
fn size_updates_and_large_entries_evict() {
    let mut decoder = Decoder::default();
    decoder.decode(&hex("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572"), LIST).unwrap();
    assert_eq!(decoder.table_size(), 55);
    assert!(decoder.clone().decode(&hex("20 be"), LIST).is_err(), "evicted");
    decoder.decode(&hex("3f18"), LIST).unwrap();
    assert_eq!(decoder.table_size(), 55, "a table of 55 holds it");
    decoder.decode(&hex("40 02 6161 02 6262"), LIST).unwrap();
    assert_eq!(decoder.table_size(), 36, "the newer one replaces it");
    let mut block = hex("40 01 61 22");
    block.extend_from_slice(&[b'x'; 34]);
    decoder.decode(&block, LIST).unwrap();
    assert_eq!(decoder.table_size(), 0, "one that is too large empties the table");
    decoder.set_limit(0);
    decoder.decode(&hex("40 01 61 01 62"), LIST).unwrap();
    assert!(decoder.decode(&hex("be"), LIST).is_err());
    assert!(decoder.decode(&hex("3f 00"), LIST).is_err(), "above the limit");
}

#[test]
fn lists_above_the_limit_lose_fields_and_far_above_it_the_connection() {
    let list = 100;
    let field = hex("0001 61 01 62");
    let cases = [(2, 2, false), (3, 2, true), (11, 2, true)];
    for (count, kept, oversize) in cases {
        let decoded = Decoder::default().decode(&field.repeat(count), list).unwrap();
        assert_eq!((decoded.fields.len(), decoded.oversize), (kept, oversize), "{count}");
    }
    assert_eq!(Decoder::default().decode(&field.repeat(12), list), Err(HpackError::Bomb));
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut block = Vec::new();
    encode::empty_table(&mut block);
    for status in [200, 204, 206, 304, 400, 404, 500, 503, 999] {
        encode::status(status, &mut block);
    }
    let long = "v".repeat(300);
    encode::literal(b"baggage", long.as_bytes(), &mut block);
    encode::named(super::static_table::AUTHORITY, b"10.0.0.1:80", &mut block);
    let fields = Decoder::default().decode(&block, LIST).unwrap().fields;
    let statuses: Vec<&[u8]> = fields.all(":status").collect();
    assert_eq!(statuses, ["200", "204", "206", "304", "400", "404", "500", "503", "999"].map(str::as_bytes));
    assert_eq!(fields.get("baggage"), Some(long.as_bytes()));
    assert_eq!(fields.get(":authority"), Some(&b"10.0.0.1:80"[..]));
}
