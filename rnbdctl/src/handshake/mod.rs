// SPDX-License-Identifier: GPL-2.0
//! The client's side of the NBD handshake, fixed newstyle, up to where the kernel takes over.
//!
//! The crates that there are do not fit: `nbd`, the only one that hands the stream back, asks with
//! NBD_OPT_EXPORT_NAME alone, to which a server cannot say why it refuses, and knows neither block sizes nor most
//! flags. What a server sends is bounded here, and nothing of it is believed before it is looked at.

mod wire;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Read, Write};

use rnbd_protocol::flags::TransmissionFlags;

use wire::{info, option, reply};

/// Longest name of an export, by the protocol.
const MAX_NAME: usize = 4096;

/// Longest reply that is read. The longest that is of use is a refusal's text, of at most 4096 bytes.
const MAX_REPLY: u32 = 64 << 10;

/// Most replies to one option before its end.
const MAX_REPLIES: usize = 64;

/// What the server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    pub flags: TransmissionFlags,
    /// None if the server does not say.
    pub block_sizes: Option<BlockSizes>,
}

/// The sizes of requests that the server takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    pub minimum: u32,
    pub preferred: u32,
    pub maximum: u32,
}

/// Why there is no export.
#[derive(Debug)]
pub enum Error {
    Io(io::Error),
    /// The server closed the connection. What was awaited?
    Closed(&'static str),
    /// What answers is no NBD server.
    NotNbd([u8; 8]),
    /// It speaks the protocol of before 2011.
    Oldstyle,
    /// It wants TLS, which the kernel cannot do.
    WantsTls,
    /// It has no export of this name.
    NoExport(String),
    /// It refuses, with this error of the protocol and these words.
    Refused(u32, String),
    /// It breaks the protocol.
    Broken(String),
    /// The name is too long to be an export's.
    LongName(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) if is_timeout(error) => write!(f, "it does not answer"),
            Error::Io(error) => write!(f, "{error}"),
            Error::Closed(what) => write!(f, "it closed the connection instead of {what}"),
            Error::NotNbd(bytes) => {
                write!(f, "what answers is no NBD server: it begins with \"{}\"", bytes.escape_ascii())
            }
            Error::Oldstyle => write!(f, "it speaks the oldstyle protocol, which has no exports with names"),
            Error::WantsTls => {
                write!(f, "it wants TLS, which rnbdctl does not do (nbd-client does: -certfile, -keyfile)")
            }
            Error::NoExport(text) => write!(f, "it has no such export{}", Said(text)),
            Error::Refused(error, text) => {
                write!(f, "it refuses: {}{}", reply::error_name(*error), Said(text))
            }
            Error::Broken(what) => write!(f, "it breaks the protocol: {what}"),
            Error::LongName(length) => {
                write!(f, "an export's name has at most {MAX_NAME} bytes, and this one has {length}")
            }
        }
    }
}

/// A server's own words, if it has any. They may be anything.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (\"{}\")", self.0.escape_debug()) }
    }
}

/// A time-out of a socket is told as one or the other.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Broken(what.into()))
}

/// Asks for the export with this name. Afterwards the stream is where requests are expected.
pub fn negotiate(mut stream: impl Read + Write, name: &str) -> Result<Export, Error> {
    if name.len() > MAX_NAME {
        return Err(Error::LongName(name.len()));
    }
    let greeting = greet(&mut stream)?;
    let export = if greeting.fixed {
        match go(&mut stream, name)? {
            Some(export) => export,
            None => by_name(&mut stream, name, greeting)?,
        }
    } else {
        by_name(&mut stream, name, greeting)?
    };
    if export.size == 0 {
        return broken("the export has no bytes");
    }
    if i64::try_from(export.size).is_err() {
        return broken(format!("the export has {} bytes, more than a disk can have", export.size));
    }
    Ok(export)
}

/// What was agreed on in the greeting.
#[derive(Clone, Copy)]
struct Greeting {
    /// Options that are not understood are refused, instead of the connection closed.
    fixed: bool,
    no_zeroes: bool,
}

fn greet(stream: &mut (impl Read + Write)) -> Result<Greeting, Error> {
    let magic: [u8; 8] = read(stream, "its greeting")?;
    if magic != wire::MAGIC {
        return Err(Error::NotNbd(magic));
    }
    match read::<8>(stream, "its greeting")? {
        wire::OPTION_MAGIC => {}
        wire::OLDSTYLE_MAGIC => return Err(Error::Oldstyle),
        other => return broken(format!("its greeting goes on with {:#018x}", u64::from_be_bytes(other))),
    }
    let flags = u16::from_be_bytes(read(stream, "its greeting")?);
    let greeting =
        Greeting { fixed: flags & wire::FIXED_NEWSTYLE != 0, no_zeroes: flags & wire::NO_ZEROES != 0 };
    let ours = flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes())?;
    Ok(greeting)
}

/// NBD_OPT_GO. None if the server does not know it.
fn go(stream: &mut (impl Read + Write), name: &str) -> Result<Option<Export>, Error> {
    // Asking for the block sizes promises to keep to them.
    stream.write_all(&wire::option(option::GO, &wire::go(name, &[info::BLOCK_SIZE])))?;
    let mut export: Option<(u64, TransmissionFlags)> = None;
    let mut block_sizes = None;
    for _ in 0..MAX_REPLIES {
        let reply = read_reply(stream, option::GO)?;
        match reply.kind {
            reply::INFO => match wire::Info::parse(&reply.data) {
                Some(wire::Info::Export { size, flags }) => export = Some((size, known(flags))),
                Some(wire::Info::BlockSize(sizes)) => block_sizes = Some(checked(sizes)?),
                Some(wire::Info::Other) => {}
                None => return broken(format!("an information of {} bytes", reply.data.len())),
            },
            reply::ACK => {
                let Some((size, flags)) = export else {
                    return broken("it grants the export and does not describe it");
                };
                return Ok(Some(Export { size, flags, block_sizes }));
            }
            reply::ERR_UNSUP => return Ok(None),
            reply::ERR_TLS_REQD => return Err(Error::WantsTls),
            kind => {
                let text = String::from_utf8_lossy(&reply.data).into_owned();
                abort(stream);
                return Err(match kind {
                    reply::ERR_UNKNOWN => Error::NoExport(text),
                    kind if kind & reply::ERROR != 0 => Error::Refused(kind, text),
                    kind => Error::Broken(format!("reply {kind} to NBD_OPT_GO")),
                });
            }
        }
    }
    broken(format!("more than {MAX_REPLIES} replies to NBD_OPT_GO"))
}

/// NBD_OPT_EXPORT_NAME, to which a server that refuses can only close the connection.
fn by_name(stream: &mut (impl Read + Write), name: &str, greeting: Greeting) -> Result<Export, Error> {
    stream.write_all(&wire::option(option::EXPORT_NAME, name.as_bytes()))?;
    let size = match read::<8>(stream, "an export") {
        Err(Error::Closed(_)) => return Err(Error::NoExport(String::new())),
        size => u64::from_be_bytes(size?),
    };
    let flags = u16::from_be_bytes(read(stream, "the rest of the export")?);
    if !greeting.no_zeroes {
        read::<124>(stream, "the rest of the export")?;
    }
    Ok(Export { size, flags: known(flags), block_sizes: None })
}

/// Tells the server that we go. It makes no difference if it cannot be told.
fn abort(stream: &mut impl Write) {
    let _ = stream.write_all(&wire::option(option::ABORT, &[]));
}

/// Without NBD_FLAG_HAS_FLAGS the others mean nothing.
fn known(flags: u16) -> TransmissionFlags {
    let flags = TransmissionFlags::from_bits(flags.into());
    if flags.contains(TransmissionFlags::HAS_FLAGS) { flags } else { TransmissionFlags::default() }
}

fn checked(sizes: BlockSizes) -> Result<BlockSizes, Error> {
    let BlockSizes { minimum, preferred, maximum } = sizes;
    let good = minimum.is_power_of_two()
        && preferred.is_power_of_two()
        && minimum <= preferred
        && minimum <= 64 << 10
        && (maximum == u32::MAX || (maximum >= preferred && maximum % minimum == 0));
    if good {
        return Ok(sizes);
    }
    broken(format!("block sizes of {minimum} at least, {preferred} at best, {maximum} at most"))
}

fn read<const N: usize>(stream: &mut impl Read, what: &'static str) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(|error| closed(error, what))?;
    Ok(bytes)
}

fn closed(error: io::Error, what: &'static str) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::Closed(what),
        _ => Error::Io(error),
    }
}

struct Reply {
    kind: u32,
    data: Vec<u8>,
}

fn read_reply(stream: &mut impl Read, to: u32) -> Result<Reply, Error> {
    const WHAT: &str = "answering the request for an export";
    let header = wire::ReplyHeader::parse(&read(stream, WHAT)?);
    if header.magic != wire::REPLY_MAGIC {
        return broken(format!("a reply begins with {:#018x}", header.magic));
    }
    if header.option != to {
        return broken(format!("an answer to option {}, and not to {to}", header.option));
    }
    if header.length > MAX_REPLY {
        return broken(format!("a reply of {} bytes", header.length));
    }
    let mut data = vec![0; header.length as usize];
    stream.read_exact(&mut data).map_err(|error| closed(error, WHAT))?;
    Ok(Reply { kind: header.kind, data })
}
