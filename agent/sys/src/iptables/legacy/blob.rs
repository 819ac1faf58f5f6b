//! A table of the legacy back end as one blob: entries of different lengths, one after another, that refer to each other
//! by offset. A chain of a user begins with an entry whose target is `ERROR` and has the chain's name. Pure.

use std::io;

/// Target of an entry that names a chain; the last entry of a table has it too.
const ERROR: &[u8] = b"ERROR";
/// `struct xt_entry_target` without its data: size, name, revision.
const TARGET: usize = 32;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// The hooks that it has, a bit each.
    pub(super) valid_hooks: u32,
    /// Where the chain of each hook begins.
    pub(super) hook_entry: [u32; 5],
    /// Where each chain's policy is.
    pub(super) underflow: [u32; 5],
    /// Number of entries.
    pub(super) count: u32,
    /// The entries.
    pub(super) entries: Vec<u8>,
}

/// Where the fields of `struct ipt_entry`, or `struct ip6t_entry`, are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// Offset of `target_offset`, after which `next_offset` comes, 16 bits each.
    offsets: usize,
    /// Length of the structure.
    length: usize,
}

impl Form {
    pub(super) const IPV4: Self = Self { offsets: 88, length: 112 };
    pub(super) const IPV6: Self = Self { offsets: 140, length: 168 };
}

/// An entry, with what matters of it.
struct Entry {
    at: usize,
    end: usize,
    /// Where in the blob its target is.
    target: usize,
    kind: Target,
}

enum Target {
    /// The head of a chain of this name.
    Head(Vec<u8>),
    /// A jump to an offset.
    Jump(usize),
    /// Anything else.
    Other,
}

impl Blob {
    /// The table without these chains and the jumps to them; `None` when it does not have all of them.
    ///
    /// # Errors
    /// When the blob has another form than this module knows.
    pub(super) fn without(&self, form: &Form, chains: &[&str]) -> io::Result<Option<Self>> {
        let entries = self.parse(form)?;
        let Some((last, rest)) = entries.split_last() else { return Ok(None) };
        let heads: Vec<&[u8]> = rest
            .iter()
            .filter_map(|entry| match &entry.kind {
                Target::Head(name) => Some(name.as_slice()),
                _ => None,
            })
            .collect();
        if !chains.iter().all(|chain| heads.contains(&chain.as_bytes())) {
            return Ok(None);
        }
        let mut inside = false;
        let of_chain: Vec<bool> = rest
            .iter()
            .map(|entry| {
                if let Target::Head(name) = &entry.kind {
                    inside = chains.iter().any(|chain| chain.as_bytes() == name);
                }
                inside
            })
            .collect();
        let leads_there = |entry: &Entry| match entry.kind {
            Target::Jump(to) => {
                rest.iter().position(|other| other.at == to).is_some_and(|found| of_chain[found])
            }
            _ => false,
        };
        let gone: Vec<bool> =
            rest.iter().zip(&of_chain).map(|(entry, inside)| *inside || leads_there(entry)).collect();
        Ok(Some(self.rebuild(rest, last, &gone)))
    }

    fn rebuild(&self, rest: &[Entry], last: &Entry, gone: &[bool]) -> Self {
        let kept = || rest.iter().zip(gone).filter(|(_, gone)| !**gone).map(|(entry, _)| entry).chain([last]);
        // An offset moves by the length of what is gone before it.
        let moved = |offset: usize| {
            let before = rest.iter().zip(gone).filter(|(entry, gone)| **gone && entry.at < offset);
            offset - before.map(|(entry, _)| entry.end - entry.at).sum::<usize>()
        };
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in kept() {
            let start = entries.len();
            entries.extend(&self.entries[entry.at..entry.end]);
            if let Target::Jump(to) = entry.kind {
                let at = start + entry.target - entry.at + TARGET;
                entries[at..at + 4].copy_from_slice(&to_word(moved(to)).to_ne_bytes());
            }
        }
        let hooks = |of: [u32; 5]| {
            std::array::from_fn(|hook| match self.valid_hooks >> hook & 1 {
                1 => to_word(moved(of[hook] as usize)),
                _ => of[hook],
            })
        };
        Self {
            valid_hooks: self.valid_hooks,
            hook_entry: hooks(self.hook_entry),
            underflow: hooks(self.underflow),
            count: to_word(kept().count()),
            entries,
        }
    }

    fn parse(&self, form: &Form) -> io::Result<Vec<Entry>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the table has an unknown form");
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.entries.len() {
            let half = |offset: usize| {
                let bytes = self.entries.get(at + offset..at + offset + 2).ok_or_else(bad)?;
                Ok::<_, io::Error>(usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])))
            };
            let (target, next) = (half(form.offsets)?, half(form.offsets + 2)?);
            let (end, target) = (at + next, at + target);
            if target < at + form.length || target + TARGET > end || end > self.entries.len() {
                return Err(bad());
            }
            let (name, data) = (&self.entries[target + 2..target + 31], &self.entries[target + TARGET..end]);
            let kind = match text(name) {
                name if name == ERROR => Target::Head(text(data).to_vec()),
                // The standard target has no name: a verdict below zero, or where to jump.
                name if name.is_empty() && data.len() >= 4 => {
                    i32::from_ne_bytes([data[0], data[1], data[2], data[3]])
                        .try_into()
                        .map_or(Target::Other, Target::Jump)
                }
                _ => Target::Other,
            };
            found.push(Entry { at, end, target, kind });
            at = end;
        }
        Ok(found)
    }
}

/// The bytes before the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The 32 bits at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |it| u32::from_ne_bytes([it[0], it[1], it[2], it[3]]))
}

/// The kernel's own offsets are 32 bits.
fn to_word(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry with this target and data.
    fn entry(form: &Form, target: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; form.length];
        let size = TARGET + data.len().next_multiple_of(8);
        let offsets = [form.length, form.length + size].map(|it| u16::try_from(it).unwrap().to_ne_bytes());
        bytes[form.offsets..form.offsets + 4].copy_from_slice(&offsets.concat());
        let mut tail = vec![0; size];
        tail[..2].copy_from_slice(&u16::try_from(size).unwrap().to_ne_bytes());
        tail[2..2 + target.len()].copy_from_slice(target.as_bytes());
        tail[TARGET..TARGET + data.len()].copy_from_slice(data);
        bytes.extend(tail);
        bytes
    }

    /// What a table is made of, by which a test writes one down.
    #[derive(Clone, Copy)]
    enum Part<'a> {
        /// The head of a chain.
        Head(&'a str),
        /// A jump to a chain.
        Jump(&'a str),
        /// A verdict, for instance a policy.
        Verdict(i32),
        /// A target with a name.
        Target(&'a str),
    }

    /// The table of these parts. Two hooks: the first begins at the first part, the second at the one after the first
    /// policy (-2).
    fn table(form: &Form, parts: &[Part<'_>]) -> Blob {
        let head = |name: &str| {
            let mut data = [0; 32];
            data[..name.len()].copy_from_slice(name.as_bytes());
            entry(form, "ERROR", &data)
        };
        let bytes = |to: &dyn Fn(&str) -> i32| -> Vec<Vec<u8>> {
            parts
                .iter()
                .map(|part| match part {
                    Part::Head(name) => head(name),
                    Part::Jump(name) => entry(form, "", &to(name).to_ne_bytes()),
                    Part::Verdict(verdict) => entry(form, "", &verdict.to_ne_bytes()),
                    Part::Target(name) => entry(form, name, &[7; 8]),
                })
                .chain([head("ERROR")])
                .collect()
        };
        let lengths: Vec<usize> = bytes(&|_| 0).iter().map(Vec::len).collect();
        let start = |at: usize| lengths[..at].iter().sum::<usize>();
        let chain = |name: &str| {
            let found = parts.iter().position(|part| matches!(part, Part::Head(head) if *head == name));
            i32::try_from(start(found.unwrap() + 1)).unwrap()
        };
        let policies: Vec<usize> =
            (0..parts.len()).filter(|at| matches!(parts[*at], Part::Verdict(-2))).collect();
        let word = |at: usize| u32::try_from(start(at)).unwrap();
        Blob {
            valid_hooks: 0b1001,
            hook_entry: [0, 9, 9, word(policies[0] + 1), 9],
            underflow: [word(policies[0]), 9, 9, word(policies[1]), 9],
            count: u32::try_from(parts.len() + 1).unwrap(),
            entries: bytes(&chain).concat(),
        }
    }

    #[test]
    fn chains_go_with_what_jumps_to_them_and_everything_else_stays() {
        use Part::{Head, Jump, Target, Verdict};
        for form in [Form::IPV4, Form::IPV6] {
            let before = table(
                &form,
                &[
                    Jump("A"),
                    Jump("MINE"),
                    Verdict(-2),
                    Target("LOG"),
                    Jump("B"),
                    Verdict(-2),
                    Head("A"),
                    Target("REDIRECT"),
                    Jump("B"),
                    Verdict(-5),
                    Head("MINE"),
                    Jump("OTHER"),
                    Verdict(-5),
                    Head("B"),
                    Target("CT"),
                    Verdict(-5),
                    Head("OTHER"),
                    Verdict(-1),
                    Verdict(-5),
                ],
            );
            let after = table(
                &form,
                &[
                    Jump("MINE"),
                    Verdict(-2),
                    Target("LOG"),
                    Verdict(-2),
                    Head("MINE"),
                    Jump("OTHER"),
                    Verdict(-5),
                    Head("OTHER"),
                    Verdict(-1),
                    Verdict(-5),
                ],
            );
            assert_eq!(before.without(&form, &["A", "B"]).unwrap().unwrap(), after);
            assert_eq!(before.without(&form, &["A", "GONE"]).unwrap(), None, "not all of them");
            assert_eq!(after.without(&form, &["A", "B"]).unwrap(), None);
        }
    }
    #[test]
    fn a_blob_of_another_form_is_refused() {
        let blob = |entries: Vec<u8>| Blob {
            valid_hooks: 0,
            hook_entry: [0; 5],
            underflow: [0; 5],
            count: 1,
            entries,
        };
        for entries in [vec![0; 3], vec![0; 112], vec![0xff; 400]] {
            assert!(blob(entries).without(&Form::IPV4, &["A"]).is_err());
        }
        assert_eq!(blob(Vec::new()).without(&Form::IPV4, &["A"]).unwrap(), None);
    }
}
