// SPDX-License-Identifier: GPL-2.0
//! Figures and errors as people read them, and output that may be cut off.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

/// A size in binary units.
pub fn size(bytes: u64) -> String {
    humansize::format_size(bytes, humansize::BINARY.decimal_places(1))
}

/// A time with the two coarsest of its units.
pub fn duration(milliseconds: u64) -> String {
    if milliseconds < 10_000 {
        return format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100);
    }
    let text = humantime::format_duration(Duration::from_secs(milliseconds / 1000)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// One or several.
pub fn count(number: u64, one: &str, several: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {several}") }
}

/// An error of the system without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error") {
        Some((plain, _)) => plain.to_owned(),
        None => text,
    }
}

/// Writes to standard output. That nobody reads to its end is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// The same of something as one line of JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(0), "0 B");
        assert_eq!(duration(0), "0.0 s");
        assert_eq!(duration(1234), "1.2 s");
        assert_eq!(duration(75_000), "1m 15s");
        assert_eq!(duration(3 * 86_400_000 + 3_600_000 + 1000), "3days 1h");
    }

    #[test]
    fn errors_lose_their_number() {
        assert_eq!(plain(&io::Error::from_raw_os_error(2)), "No such file or directory");
        assert_eq!(plain(&io::Error::other("it is so")), "it is so");
    }
}
