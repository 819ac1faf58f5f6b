//! A list of header fields in one buffer.
//!
//! Knows names and values as bytes. What a name means is decided in [`crate::head`].

/// What RFC 9113 §6.5.2 adds to the length of each field for the size of a header list.
pub(crate) const FIELD_OVERHEAD: usize = 32;

/// Header fields in the order they were received. Names are in lower case once they have been validated.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Names and values, one after the other.
    bytes: Vec<u8>,
    /// For each field: where its name ends and where its value ends.
    ends: Vec<(usize, usize)>,
}

impl Fields {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The size of the list as RFC 9113 §6.5.2 counts it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * FIELD_OVERHEAD
    }

    /// The field at a position.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let (name_end, value_end) = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.bytes[start..name_end], &self.bytes[name_end..value_end]))
    }

    /// The field appended last.
    pub(crate) fn last(&self) -> Option<(&[u8], &[u8])> {
        self.at(self.len().checked_sub(1)?)
    }

    /// All fields, names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).filter_map(|index| self.at(index))
    }

    /// All values of one name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
    }

    /// The first value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((name_end, self.bytes.len()));
    }

    /// Appends a field whose name and then value `write` appends to the buffer; it returns where the name ends. Nothing
    /// is appended when it fails.
    pub(crate) fn push_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, E>,
    ) -> Result<(), E> {
        let start = self.bytes.len();
        match write(&mut self.bytes) {
            Ok(name_end) => {
                self.ends.push((name_end, self.bytes.len()));
                Ok(())
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// Removes the last field.
    pub(crate) fn pop(&mut self) {
        self.ends.pop();
        self.bytes.truncate(self.ends.last().map_or(0, |(_, value_end)| *value_end));
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Fields {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(all: I) -> Self {
        let mut fields = Self::new();
        for (name, value) in all {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }
}
