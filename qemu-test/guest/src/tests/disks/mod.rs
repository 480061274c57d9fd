// SPDX-License-Identifier: GPL-2.0
//! Nothing of one attachment of a number reaches the next, in either direction (invariant G4): no byte that was written,
//! cached, mapped, queued, throttled or is still being written through an open of the one comes to the server of the
//! next, and no byte of the next is seen through an open of the one.

mod block_size;
mod continued;
mod frozen;
mod image;
mod md;
mod numbers;
mod old_opens;
mod partitions;
mod random;
mod removal;
mod seen;
mod stacked;
mod writes;

use super::Test;

pub const TESTS: [&[Test]; 12] = [
    partitions::TESTS,
    old_opens::TESTS,
    writes::TESTS,
    stacked::TESTS,
    md::TESTS,
    continued::TESTS,
    block_size::TESTS,
    seen::TESTS,
    frozen::TESTS,
    numbers::TESTS,
    removal::TESTS,
    random::TESTS,
];
