// SPDX-License-Identifier: GPL-2.0
//! Why a command ends without having done what it should, and what to do about it.

use std::fmt;
use std::process::ExitCode;

use nbd_netlink::Refusal;

/// Longest text that the kernel makes room for in an extended ack; the rest is cut off.
const MAX_TEXT: usize = 79;

/// The kinds of failures, by their exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The driver refused, or something else went wrong.
    Refused = 1,
    /// There are no privileges for it.
    Privileges = 3,
    /// There is no driver, or no such device.
    Absent = 4,
    /// The server.
    Server = 5,
}

/// A failure that people are told of.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    what: String,
    hints: Vec<String>,
}

impl Failure {
    pub fn new(kind: Kind, what: impl Into<String>) -> Failure {
        Failure { kind, what: what.into(), hints: Vec::new() }
    }

    /// And this is what can be done, or known besides.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// What the kernel refused, in its own words.
    pub fn of(what: &str, refusal: &Refusal) -> Failure {
        use nix::errno::Errno;
        if refusal.errno == Errno::EPERM {
            return Failure::privileges(what);
        }
        let errno = refusal.errno;
        // The device is named once.
        let text = match refusal.text.split_once(": ") {
            Some((device, why)) if what.ends_with(&format!(" {device}")) => why,
            _ => &refusal.text,
        };
        let cut_off = if refusal.text.len() >= MAX_TEXT { "…" } else { "" };
        let told = match text {
            "" => format!("{what}: {} ({errno:?})", errno.desc()),
            text => format!("{what}: {text}{cut_off} ({errno:?})"),
        };
        let failure = Failure::new(Kind::Refused, told);
        match refusal.text.len() {
            0 => failure.hint("the driver does not say why; the kernel log may: dmesg | grep nbd"),
            MAX_TEXT.. => failure.hint("the kernel log has all of it: dmesg | grep nbd"),
            _ => failure,
        }
    }

    pub fn privileges(what: &str) -> Failure {
        Failure::new(Kind::Privileges, format!("{what}: this needs root (CAP_SYS_ADMIN)"))
            .hint("run it as root, with sudo for example; rnbdctl status needs no privileges")
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }

    pub fn hints(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    fn refusal(errno: Errno, text: &str) -> Refusal {
        Refusal { errno, text: text.to_owned(), offset: None, missing: None }
    }

    #[test]
    fn the_kernels_words_are_shown() {
        let told = Failure::of("cannot attach nbd0", &refusal(Errno::EBUSY, "nbd0: in use")).to_string();
        assert_eq!(told, "cannot attach nbd0: in use (EBUSY)");
        let failure = Failure::of(
            "nbd0",
            &refusal(Errno::EBUSY, "in use, attached by 12 (qemu-nbd): disconnect it first"),
        );
        assert_eq!(
            failure.to_string(),
            "nbd0: in use, attached by 12 (qemu-nbd): disconnect it first (EBUSY)"
        );
        assert!(failure.hints().is_empty());
    }

    #[test]
    fn words_that_are_cut_off_are_marked() {
        let text = format!("nbd0: {}", "x".repeat(73));
        let failure = Failure::of("cannot attach nbd0", &refusal(Errno::EBUSY, &text));
        assert_eq!(failure.to_string(), format!("cannot attach nbd0: {}… (EBUSY)", "x".repeat(73)));
        assert!(failure.hints()[0].contains("dmesg"));
    }

    #[test]
    fn without_words_the_log_is_named() {
        let failure = Failure::of("nbd0", &refusal(Errno::EBUSY, ""));
        assert_eq!(failure.to_string(), "nbd0: Device or resource busy (EBUSY)");
        assert!(failure.hints()[0].contains("dmesg"));
    }

    #[test]
    fn what_needs_root_says_so() {
        let failure = Failure::of("nbd0", &refusal(Errno::EPERM, "this needs CAP_SYS_ADMIN"));
        assert_eq!(failure.kind, Kind::Privileges);
        assert!(failure.to_string().contains("needs root"));
    }
}
