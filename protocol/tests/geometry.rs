// SPDX-License-Identifier: GPL-2.0

//! Size arithmetic, against the same in wider integers.

use proptest::prelude::*;
use rnbd_protocol::geometry::{BadGeometry, BlockSize, ExportSize};

const KERNEL_MAX: u64 = 65536;

#[test]
fn zero_means_the_default_block_size() {
    let block_size = BlockSize::new(0, KERNEL_MAX).unwrap();
    assert_eq!(block_size.bytes(), 1024);
    assert_eq!(block_size.bits(), 10);
}

#[test]
fn block_sizes_are_powers_of_two_from_512_to_the_kernels_largest() {
    for shift in 0..64 {
        let bytes = 1_u64 << shift;
        let allowed = (512..=KERNEL_MAX).contains(&bytes);
        assert_eq!(
            BlockSize::new(bytes, KERNEL_MAX).is_ok(),
            allowed,
            "{bytes}"
        );
    }
    assert!(BlockSize::new(8192, 4096).is_err());
}

#[test]
fn the_largest_size_is_what_an_offset_can_hold() {
    let max = i64::MAX as u64;
    assert_eq!(ExportSize::from_bytes(max).unwrap().bytes(), max);
    assert_eq!(
        ExportSize::from_bytes(max + 1),
        Err(BadGeometry::Size {
            count: max + 1,
            unit: 1
        })
    );
}

proptest! {
    #[test]
    fn other_block_sizes_are_refused(bytes in 1_u64..) {
        prop_assume!(!bytes.is_power_of_two());
        prop_assert_eq!(
            BlockSize::new(bytes, KERNEL_MAX),
            Err(BadGeometry::BlockSize(bytes))
        );
    }

    #[test]
    fn sizes_in_bytes_are_kept_or_refused(bytes: u64) {
        let size = ExportSize::from_bytes(bytes);
        prop_assert_eq!(size.is_ok(), i64::try_from(bytes).is_ok());
        if let Ok(size) = size {
            prop_assert_eq!(size.bytes(), bytes);
            prop_assert_eq!(size.sectors(), bytes / 512);
        }
    }

    #[test]
    fn sizes_in_blocks_never_overflow(blocks: u64, shift in 9_u32..=16) {
        let block_size = BlockSize::new(1 << shift, KERNEL_MAX).unwrap();
        let exact = u128::from(blocks) << shift;
        let size = ExportSize::from_blocks(blocks, block_size);
        prop_assert_eq!(size.is_ok(), exact <= i64::MAX as u128);
        if let Ok(size) = size {
            prop_assert_eq!(u128::from(size.bytes()), exact);
        }
    }

    #[test]
    fn sizes_in_blocks_that_fit_are_exact(blocks in 0_u64..1 << 46, shift in 9_u32..=16) {
        let block_size = BlockSize::new(1 << shift, KERNEL_MAX).unwrap();
        let size = ExportSize::from_blocks(blocks, block_size).unwrap();
        prop_assert_eq!(size.bytes(), blocks << shift);
    }
}
