// SPDX-License-Identifier: GPL-2.0
//! Much of it, often, and with little memory.

mod many;
mod memory;
mod repeated;
pub mod starved;

use super::Test;

pub const TESTS: [&[Test]; 3] = [many::TESTS, repeated::TESTS, memory::TESTS];
