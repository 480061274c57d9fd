// SPDX-License-Identifier: GPL-2.0

//! Addresses of sockets, for people to read.
//!
//! C header: [`include/linux/socket.h`](srctree/include/linux/socket.h)

use kernel::{bindings, fmt};

/// Bytes of the largest address (`struct sockaddr_storage`).
const STORAGE: usize = 128;

/// Which protocols a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `AF_UNIX`.
    Unix,
    /// `AF_INET`.
    Inet,
    /// `AF_INET6`.
    Inet6,
    /// Another one.
    Other(u16),
}

impl Family {
    const fn from_number(number: u16) -> Self {
        match number as u32 {
            bindings::AF_UNIX => Self::Unix,
            bindings::AF_INET => Self::Inet,
            bindings::AF_INET6 => Self::Inet6,
            _ => Self::Other(number),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => write!(f, "unix"),
            Self::Inet => write!(f, "tcp4"),
            Self::Inet6 => write!(f, "tcp6"),
            Self::Other(number) => write!(f, "family{number}"),
        }
    }
}

/// The address of one end of a socket; it may have none.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct SockAddr {
    bytes: [u8; STORAGE],
    len: usize,
}

impl SockAddr {
    /// An address as the kernel writes it: `fill` gets room for the largest, and returns the
    /// length, or a negative errno for none.
    pub(super) fn read(fill: impl FnOnce(*mut bindings::sockaddr) -> i32) -> Self {
        let mut this = Self {
            bytes: [0; STORAGE],
            len: 0,
        };
        let len = fill(this.bytes.as_mut_ptr().cast());
        this.len = usize::try_from(len).unwrap_or(0).min(STORAGE);
        this
    }

    fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let used = self.bytes.get(..self.len)?;
        used.get(at..)?.first_chunk::<N>().copied()
    }

    /// The family, of an address that is there.
    pub(crate) fn family(&self) -> Option<Family> {
        Some(Family::from_number(u16::from_ne_bytes(self.field(0)?)))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> Option<fmt::Result> {
        Some(match self.family()? {
            Family::Inet => {
                let [a, b, c, d] = self.field(4)?;
                write!(f, "{a}.{b}.{c}.{d}:{}", u16::from_be_bytes(self.field(2)?))
            }
            Family::Inet6 => {
                let address = u128::from_be_bytes(self.field(8)?);
                let address = core::net::Ipv6Addr::from_bits(address);
                write!(f, "[{address}]:{}", u16::from_be_bytes(self.field(2)?))
            }
            Family::Unix => {
                let path = self.bytes.get(2..self.len)?;
                // An abstract name begins with NUL, a path ends with it.
                let (mark, path) = match path.split_first()? {
                    (0, name) => ("@", name),
                    _ => ("", path),
                };
                let path = path.split(|&byte| byte == 0).next()?;
                write!(f, "{mark}").and_then(|()| write_escaped(f, path))
            }
            Family::Other(_) => return None,
        })
    }
}

/// A path in one word: what is not a printable ASCII character is written in octal, as `seq_path`
/// writes blanks.
fn write_escaped(f: &mut fmt::Formatter<'_>, path: &[u8]) -> fmt::Result {
    path.iter().try_for_each(|&byte| match byte {
        b'\\' => write!(f, "\\134"),
        byte if byte.is_ascii_graphic() => write!(f, "{}", char::from(byte)),
        byte => write!(f, "\\{byte:03o}"),
    })
}

impl fmt::Display for SockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f).unwrap_or_else(|| f.write_str("-"))
    }
}
