//! Generators for the fuzz harnesses in `tests/`: bytes become decisions, and decisions become messages that are mostly
//! valid and use few names, so that resources often refer to one another.
//!
//! The harnesses run for a second or two under `cargo test`, and longer with
//! `BOLERO_RANDOM_TEST_TIME_MS=300000 BOLERO_RANDOM_ITERATIONS=1000000000`; bolero's coverage-guided engines run them
//! unchanged.

pub mod mesh;
pub mod resources;

/// Decisions from bytes. After the last byte every decision is the first possibility.
#[derive(Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Decisions of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all bytes are used up.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next bytes, at most `most`.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number: mostly small, sometimes at an edge, rarely anything.
    pub fn number(&mut self) -> u32 {
        match self.byte() {
            small @ 0..=199 => u32::from(small),
            edge @ 200..=239 => {
                [65_535, 65_536, u32::MAX, 15_008, 8_080, 80, 32, 33, 128, 129][edge as usize % 10]
            }
            _ => self.bytes(4).iter().fold(0, |number, byte| number << 8 | u32::from(*byte)),
        }
    }

    /// Yes, one time in `odds`.
    pub fn rarely(&mut self, odds: u8) -> bool {
        self.byte() % odds == odds - 1
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn one<'b, T: ?Sized>(&mut self, of: &[&'b T]) -> &'b T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// One of these names, or rarely some text.
    pub fn name(&mut self, of: &[&str]) -> String {
        if self.rarely(24) {
            let length = usize::from(self.byte() % 40);
            return String::from_utf8_lossy(self.bytes(length)).into_owned();
        }
        self.one(of).to_owned()
    }

    /// A few of something.
    pub fn some<T>(&mut self, most: u8, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        let count = self.byte() % (most + 1);
        (0..count).map(|_| make(self)).collect()
    }
}
