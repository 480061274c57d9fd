// SPDX-License-Identifier: GPL-2.0

//! What names a request on the wire.

/// Numbers the requests of a connection, in the order in which they are sent.
///
/// The numbers start again after 2^32: an older reply than that would not be told.
#[derive(Debug, Default)]
pub struct Sequence(u32);

impl Sequence {
    /// The number of the request that is sent next.
    pub fn advance(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// The 64 bits that a server copies from a request into its reply.
///
/// The upper half counts the requests of a connection, so that a late reply to an earlier use of
/// the tag does not match; the lower half is the block layer's unique tag (hardware queue and tag).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    sequence: u32,
    tag: u32,
}

impl Cookie {
    /// Names no request.
    pub const NONE: Self = Self {
        sequence: 0,
        tag: 0,
    };

    /// A cookie for the unique tag `tag`, sent as the `sequence`th request of its connection.
    pub const fn new(sequence: u32, tag: u32) -> Self {
        Self { sequence, tag }
    }

    /// Which of its connection's requests it was.
    pub const fn sequence(self) -> u32 {
        self.sequence
    }

    /// The block layer's unique tag, as the other side gave it: to be looked up, not trusted.
    pub const fn tag(self) -> u32 {
        self.tag
    }

    /// As a number, before it is put in network order.
    pub const fn to_wire(self) -> u64 {
        ((self.sequence as u64) << 32) | self.tag as u64
    }

    /// From a number, after it was taken out of network order.
    pub const fn from_wire(number: u64) -> Self {
        Self {
            sequence: (number >> 32) as u32,
            tag: number as u32,
        }
    }
}
