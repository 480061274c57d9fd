// SPDX-License-Identifier: GPL-2.0
//! The client's side of a handshake with a real server, before its socket goes to the driver.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};

/// The handshake of a client that wants the export named "", in its old short form, which has one answer.
/// The export has to be of `size` bytes.
pub fn shake_hands(mut stream: &UnixStream, size: u64) -> Result<()> {
    const MAGIC: &[u8; 16] = b"NBDMAGICIHAVEOPT";
    const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
    const EXPORT_NAME: u32 = 1;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(greeting[..16] == *MAGIC, "the server says {greeting:?}");
    let wish =
        [&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes()[..], b"IHAVEOPT", &EXPORT_NAME.to_be_bytes(), &[0; 4]];
    stream.write_all(&wish.concat())?;
    let mut export = [0; 10];
    stream.read_exact(&mut export)?;
    ensure!(export[..8] == size.to_be_bytes(), "the export is {export:?}");
    Ok(())
}
