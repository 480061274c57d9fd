// SPDX-License-Identifier: GPL-2.0
//! Data that says of itself where it belongs: each sector holds its own number and a version, and all the rest of it
//! follows from the two. So a sector that is read at another place, mixed with another one, or made up, is told.

pub const SECTOR: usize = 512;

/// A sector's number on the device, as each one was before any write.
pub const ORIGINAL: u64 = 1;

fn sector(number: u64, version: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut state = (number << 20) ^ version ^ 0x9e37_79b9_7f4a_7c15;
    for word in bytes.chunks_exact_mut(8) {
        // Xorshift: no eight bytes in it are zero.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// `length` bytes for `offset`, all of one version.
pub fn data(offset: u64, length: usize, version: u64) -> Vec<u8> {
    let first = offset / SECTOR as u64;
    (first..).take(length / SECTOR).flat_map(|number| sector(number, version)).collect()
}

/// The versions of the sectors in `data`, which must be those that belong at `offset`.
pub fn versions(offset: u64, data: &[u8]) -> Result<Vec<u64>, String> {
    let first = offset / SECTOR as u64;
    let of_sector = |(number, bytes): (u64, &[u8])| {
        let version =
            u64::from_le_bytes(std::array::from_fn(|index| bytes.get(8 + index).copied().unwrap_or(0)));
        if bytes == sector(number, version) {
            return Ok(version);
        }
        Err(format!("sector {number} does not hold its own data, but {:02x?}...", &bytes[..24]))
    };
    (first..).zip(data.chunks(SECTOR)).map(of_sector).collect()
}
