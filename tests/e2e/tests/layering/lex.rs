//! Rust source as tokens, without comments, literals, lifetimes and test-only items.

/// What the scanner looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// An identifier or keyword.
    Ident(String),
    /// `::`
    PathSep,
    /// Any other character.
    Punct(char),
}

/// The tokens of a file.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    without_tests(all(text))
}

fn all(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            quote(rest)
        } else if first == '_' || first.is_alphabetic() {
            let length = word(rest);
            tokens.push(Token::Ident(rest[..length].to_owned()));
            length
        } else if first.is_ascii_digit() {
            word(rest)
        } else if rest.starts_with("::") {
            tokens.push(Token::PathSep);
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Punct(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn word(text: &str) -> usize {
    text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len())
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string literal at the start, raw or not, with its prefix.
fn string(text: &str) -> Option<usize> {
    let prefix = ["\"", "b\"", "c\"", "r\"", "br\"", "cr\"", "r#", "br#", "cr#"];
    let prefix = prefix.iter().find(|prefix| text.starts_with(**prefix))?;
    let raw = prefix.contains('r');
    let start = prefix.trim_end_matches(['"', '#']).len();
    let hashes = text[start..].len() - text[start..].trim_start_matches('#').len();
    let body = start + hashes + 1;
    if text.as_bytes().get(start + hashes) != Some(&b'"') {
        // A raw identifier.
        return None;
    }
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()));
    }
    let mut escaped = false;
    for (at, c) in text[body..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(body + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// The length of the character literal or lifetime at the start.
fn quote(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            text[from..].find('\'').map_or(text.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + word(&text[1..]),
    }
}

/// Drops every item, statement or field with the attribute `#[cfg(test)]`, and the whole file with `#![cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let attribute = all("#[cfg(test)]");
    if tokens.windows(7).any(|window| window == all("#![cfg(test)]").get(..7).unwrap_or_default()) {
        return Vec::new();
    }
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&attribute) {
            at = after_item(&tokens, at + attribute.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// The index behind the item that starts at `at`, perhaps with further attributes.
fn after_item(tokens: &[Token], mut at: usize) -> usize {
    let is = |at: usize, word: &str| tokens.get(at) == Some(&Token::Ident(word.to_owned()));
    while tokens.get(at) == Some(&Token::Punct('#')) {
        at = after_group(tokens, at + 1);
    }
    let visibility = usize::from(is(at, "pub"));
    let restricted = visibility == 1 && tokens.get(at + 1) == Some(&Token::Punct('('));
    let keyword = if restricted { after_group(tokens, at + 1) } else { at + visibility };
    let to_semicolon =
        is(keyword, "use") || is(keyword, "const") && !is(keyword + 1, "fn") || is(keyword, "static");
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Punct(';' | ',') => return at + 1,
            Token::Punct('{') if !to_semicolon => return after_group(tokens, at),
            Token::Punct('{' | '(' | '[') => at = after_group(tokens, at),
            // The end of what it stands in: it was the last field or statement.
            Token::Punct('}' | ')' | ']') => return at,
            _ => at += 1,
        }
    }
    at
}

/// The index behind the group that opens at `at`.
fn after_group(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Punct('{' | '(' | '[') => depth += 1,
            Token::Punct('}' | ')' | ']') => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let shown = tokens(text).into_iter().map(|token| match token {
            Token::Ident(word) => word,
            Token::PathSep => "::".to_owned(),
            Token::Punct(c) => c.to_string(),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_literals_and_lifetimes_are_dropped() {
        assert_eq!(
            words("a /* b /* c */ */ 'd' '\\'' 'e: \"f\\\"\" r#\"g\"h\"# b\"i\" // j\n::k"),
            "a : :: k"
        );
        assert_eq!(words("&'a str, b'x', '\\u{1F600}', 0xff_u8, r#type"), "& str , b , , , r # type");
    }

    #[test]
    fn items_of_tests_are_dropped() {
        assert_eq!(words("#[cfg(test)] mod tests { use a::b; } fn f() {}"), "fn f ( ) { }");
        assert_eq!(words("#[cfg(test)] #[allow(x)] pub(crate) use a::{b, c}; fn f() {}"), "fn f ( ) { }");
        assert_eq!(
            words("#[cfg(test)] const A: [u8; 2] = [1, 2]; struct S { #[cfg(test)] a: B, c: D }"),
            "struct S { c : D }"
        );
        assert_eq!(words("#![cfg(test)] use a::b;"), "");
    }
}
