// SPDX-License-Identifier: GPL-2.0

//! Transmission flags: what an export can do.

/// Transmission flags of an export (`NBD_FLAG_*` in `include/uapi/linux/nbd.h`).
///
/// Bits outside the known ones are kept, for they are shown to users, and otherwise ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmissionFlags(u32);

impl TransmissionFlags {
    /// The other bits mean something.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// The export is read-only.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// Flush is understood.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// Forced unit access is understood.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// The export is on rotating media.
    pub const ROTATIONAL: Self = Self(1 << 4);
    /// Trim is understood.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// Write zeroes is understood.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// One client may use several connections, and a flush on one covers writes on all.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);

    /// The flags that have names, as nbd.ko's debugfs lists them.
    pub const NAMED: [(Self, &'static str); 8] = [
        (Self::HAS_FLAGS, "NBD_FLAG_HAS_FLAGS"),
        (Self::READ_ONLY, "NBD_FLAG_READ_ONLY"),
        (Self::SEND_FLUSH, "NBD_FLAG_SEND_FLUSH"),
        (Self::SEND_FUA, "NBD_FLAG_SEND_FUA"),
        (Self::SEND_TRIM, "NBD_FLAG_SEND_TRIM"),
        (Self::SEND_WRITE_ZEROES, "NBD_FLAG_SEND_WRITE_ZEROES"),
        (Self::ROTATIONAL, "NBD_FLAG_ROTATIONAL"),
        (Self::CAN_MULTI_CONN, "NBD_FLAG_CAN_MULTI_CONN"),
    ];

    /// Flags with these bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other`'s bits are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are set in both.
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not set in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the block layer may send flushes.
    pub const fn write_cache(self) -> bool {
        self.contains(Self::SEND_FLUSH)
    }

    /// Whether the block layer may send forced unit access. It is of use only beside a flush: with
    /// no volatile cache, every write is as good as forced.
    pub const fn fua(self) -> bool {
        self.write_cache() && self.contains(Self::SEND_FUA)
    }
}
