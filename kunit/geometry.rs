// SPDX-License-Identifier: GPL-2.0

//! Sizes (`protocol/geometry.rs`), against the largest block size of this kernel.

use crate::{
    abstractions::block::mq::max_block_size,
    protocol::geometry::{BadGeometry, BlockSize, ExportSize},
};
use kernel::prelude::*;

#[kunit_tests(rnbd_geometry)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_up_to_the_kernels_largest() {
        let max = max_block_size();
        assert!(max >= 4096 && max.is_power_of_two());
        let mut bytes = 512;
        while bytes <= max {
            let size = BlockSize::new(bytes, max);
            assert!(matches!(size, Ok(size) if size.bytes() == bytes && 1 << size.bits() == bytes));
            for wrong in [bytes + 1, bytes * 3] {
                assert!(BlockSize::new(wrong, max) == Err(BadGeometry::BlockSize(wrong)));
            }
            bytes *= 2;
        }
        for wrong in [1, 256, 511, bytes, u64::MAX, 1 << 63] {
            assert!(BlockSize::new(wrong, max) == Err(BadGeometry::BlockSize(wrong)));
        }
        assert!(BlockSize::new(0, max) == Ok(BlockSize::DEFAULT));
    }

    #[test]
    fn sizes_fit_a_signed_offset() {
        let most = i64::MAX as u64;
        assert!(ExportSize::from_bytes(most).map(|size| size.sectors()) == Ok(most >> 9));
        assert!(
            ExportSize::from_bytes(most + 1).is_err() && ExportSize::from_bytes(u64::MAX).is_err()
        );
        assert!(ExportSize::from_bytes(1023).map(|size| size.sectors()) == Ok(1));
    }

    #[test]
    fn counts_of_blocks_do_not_overflow() -> Result {
        let block = BlockSize::new(4096, max_block_size()).map_err(|_| EINVAL)?;
        assert!(ExportSize::from_blocks(3, block).map(|size| size.bytes()) == Ok(12288));
        for count in [1 << 51, 1 << 52, 1 << 63, u64::MAX] {
            let wrong = BadGeometry::Size { count, unit: 4096 };
            assert!(ExportSize::from_blocks(count, block) == Err(wrong));
        }
        assert!(ExportSize::from_blocks((1 << 51) - 1, block).is_ok());
        Ok(())
    }
}
