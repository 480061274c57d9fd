// SPDX-License-Identifier: GPL-2.0
//! Where a server is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port that is registered for NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// A host and port, or the path of a UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]:PORT`, a path with a slash in it, or `unix:PATH`.
    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("a path must follow unix:".to_owned()),
                _ => Ok(Address::Unix(path.into())),
            };
        }
        if text.contains("://") {
            return Err("URIs are not understood: say HOST:PORT, or a path, and --export NAME".to_owned());
        }
        if text.contains('/') {
            return Ok(Address::Unix(text.into()));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("the ] is missing")?;
                match rest.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if rest.is_empty() => (host, None),
                    None => return Err(format!("after ] comes a port, not {rest}")),
                }
            }
            None => match text.split_once(':') {
                // Colons in a row are IPv6's.
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err("the host is missing".to_owned());
        }
        let port = match port {
            Some(port) => {
                port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port:?} is no port"))?
            }
            None => DEFAULT_PORT,
        };
        Ok(Address::Tcp(host.to_owned(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let tcp = |host: &str, port| Ok(Address::Tcp(host.to_owned(), port));
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        for (text, want) in [
            ("storage", tcp("storage", 10809)),
            ("storage:1234", tcp("storage", 1234)),
            ("127.0.0.1:1234", tcp("127.0.0.1", 1234)),
            ("::1", tcp("::1", 10809)),
            ("fe80::1%eth0", tcp("fe80::1%eth0", 10809)),
            ("[::1]:1234", tcp("::1", 1234)),
            ("[::1]", tcp("::1", 10809)),
            ("/run/nbd.sock", unix("/run/nbd.sock")),
            ("./sock:1", unix("./sock:1")),
            ("unix:sock", unix("sock")),
        ] {
            assert_eq!(text.parse::<Address>(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":10809",
            "storage:",
            "storage:0",
            "storage:65536",
            "[::1",
            "[::1]x",
            "unix:",
            "nbd://storage",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
