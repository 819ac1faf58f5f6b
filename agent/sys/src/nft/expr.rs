//! The instructions of the kernel's nf_tables virtual machine: load a value into a register, transform it, compare it
//! or use it in an action. The rules of this program need one register; instructions with another one are
//! [`Expr::Other`].

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    /// Register = a property of the packet.
    Load(Source),
    /// Register = these bytes.
    Immediate(Vec<u8>),
    /// Register = register & mask ^ xor.
    Bitwise { mask: Vec<u8>, xor: Vec<u8> },
    /// Continue if the register equals these bytes.
    Equal(Vec<u8>),
    /// Continue if the register differs from these bytes.
    NotEqual(Vec<u8>),
    /// Continue if the register is in the set (if inverted: is not).
    Lookup { set: String, inverted: bool },
    /// A property of the packet = register.
    Store(Source),
    /// Count packets and bytes.
    Counter,
    /// Give a verdict.
    Verdict { code: u32, chain: Option<String> },
    /// Redirect to this host, to the port in the register.
    Redirect,
    /// Translate the source address to the one in the register.
    Snat { family: u32 },
    /// Translate the destination address to the one in the register.
    Dnat { family: u32 },
    /// An instruction of another program.
    Other(String),
}

/// A property of a packet or of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Mark,
    InName,
    OutName,
    SocketUid,
    NfProto,
    EtherType,
    L4Proto,
    CtState,
    CtMark,
    CtZone,
    /// The zone of the original direction only.
    CtOriginalZone,
    /// Bytes of the network header.
    Network {
        offset: u32,
        len: u32,
    },
    /// Bytes of the transport header.
    Transport {
        offset: u32,
        len: u32,
    },
}

/// Verdict codes of the kernel's ABI.
pub(super) mod verdict {
    pub(in crate::nft) const DROP: u32 = 0;
    pub(in crate::nft) const ACCEPT: u32 = 1;
    pub(in crate::nft) const JUMP: u32 = -3_i32 as u32;
    pub(in crate::nft) const RETURN: u32 = -5_i32 as u32;
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(super) mod nfproto {
    pub(in crate::nft) const IPV4: u8 = 2;
    pub(in crate::nft) const IPV6: u8 = 10;
}

/// `ETH_P_IP` and `ETH_P_IPV6`
pub(super) mod ethertype {
    pub(in crate::nft) const IPV4: u16 = 0x0800;
    pub(in crate::nft) const IPV6: u16 = 0x86dd;
}

/// `IFNAMSIZ`: an interface name is compared as a whole register, padded with zeros.
pub(super) const NAME_LEN: usize = 16;
