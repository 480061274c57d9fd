// SPDX-License-Identifier: GPL-2.0
//! What a benchmark's samples come to.

pub mod curves;
pub mod json;
pub mod line;
pub mod plot;
pub mod results;
pub mod statistics;
pub mod table;

#[cfg(test)]
mod tests;
