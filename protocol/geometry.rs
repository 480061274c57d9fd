// SPDX-License-Identifier: GPL-2.0

//! Sizes of an export, with the arithmetic that user space may get wrong.

/// Bytes of the block layer's unit of addresses, as a shift.
const SECTOR_SHIFT: u32 = 9;

/// Largest size of a block device in bytes: what `loff_t` can hold.
const MAX_BYTES: u64 = i64::MAX as u64;

/// A size or block size that no block device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadGeometry {
    /// Not a power of two from 512 to the kernel's largest block size.
    BlockSize(u64),
    /// More bytes than a signed 64-bit offset can address.
    Size {
        /// The number that user space gave.
        count: u64,
        /// The unit that it counts, in bytes.
        unit: u64,
    },
}

/// The logical block size of an export: a power of two, at least 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    shift: u8,
}

impl BlockSize {
    /// What a device has until user space says otherwise, and what it means by 0: 1024 bytes.
    pub const DEFAULT: Self = Self { shift: 10 };

    /// Checks what `NBD_SET_BLKSIZE` was given against `max`, the kernel's largest block size.
    pub const fn new(bytes: u64, max: u64) -> Result<Self, BadGeometry> {
        if bytes == 0 {
            return Ok(Self::DEFAULT);
        }
        if !bytes.is_power_of_two() || bytes < 1 << SECTOR_SHIFT || bytes > max {
            return Err(BadGeometry::BlockSize(bytes));
        }
        // A power of two has fewer than 64 trailing zeroes.
        Ok(Self {
            shift: bytes.trailing_zeros() as u8,
        })
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// As a shift.
    pub const fn bits(self) -> u32 {
        self.shift as u32
    }
}

/// Size of an export, in bytes; never more than a block device can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportSize(u64);

impl ExportSize {
    /// Checks what `NBD_SET_SIZE` was given.
    pub const fn from_bytes(bytes: u64) -> Result<Self, BadGeometry> {
        if bytes > MAX_BYTES {
            return Err(BadGeometry::Size {
                count: bytes,
                unit: 1,
            });
        }
        Ok(Self(bytes))
    }

    /// Checks what `NBD_SET_SIZE_BLOCKS` was given.
    pub const fn from_blocks(blocks: u64, block_size: BlockSize) -> Result<Self, BadGeometry> {
        match blocks.checked_mul(block_size.bytes()) {
            Some(bytes) if bytes <= MAX_BYTES => Ok(Self(bytes)),
            _ => Err(BadGeometry::Size {
                count: blocks,
                unit: block_size.bytes(),
            }),
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In whole sectors of 512 bytes; a rest is out of reach.
    pub const fn sectors(self) -> u64 {
        self.0 >> SECTOR_SHIFT
    }
}
