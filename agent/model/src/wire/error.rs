//! Why a resource was rejected, whether on the wire or at the door of the model ([`crate::admit`]).

/// Why a resource was rejected. Every message names the field and its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field is missing.
    #[error("{field}: missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// Not the bytes of an address.
    #[error("{field}: {length} bytes are not an IP address (4 or 16 are)")]
    Address {
        /// Path of the field.
        field: &'static str,
        /// How many bytes there were.
        length: usize,
    },
    /// A prefix longer than its address.
    #[error("{field}: prefix length {value} is longer than the address ({max} bits)")]
    Prefix {
        /// Path of the field.
        field: &'static str,
        /// The length.
        value: u32,
        /// Bits of the address.
        max: u8,
    },
    /// Not a port number.
    #[error("{field}: {value} is not a port (0 to 65535)")]
    Port {
        /// Path of the field.
        field: &'static str,
        /// The number.
        value: u32,
    },
    /// An unknown enum value that cannot be ignored.
    #[error("{field}: {value} is not supported")]
    Unsupported {
        /// Path of the field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// Not the key of a service.
    #[error("{field}: {value:?} is not <namespace>/<hostname>")]
    ServiceName {
        /// Path of the field.
        field: &'static str,
        /// The key.
        value: String,
    },
}
