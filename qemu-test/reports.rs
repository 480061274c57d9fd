// SPDX-License-Identifier: GPL-2.0
//! What no kernel should say. The harness looks for it on the console, and the tests in the kernel's log.

/// Starts of reports. Debug options of the kernel that are not mentioned by name print one of the general ones.
pub const REPORTS: [&str; 31] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Oops",
    "general protection fault",
    "Unable to handle kernel",
    "Kernel panic",
    "KASAN: ",
    "KFENCE: ",
    "KCSAN: ",
    "UBSAN: ",
    "INFO: task ",
    "blocked for more than",
    "INFO: rcu",
    "rcu: INFO: ",
    "soft lockup",
    "hard LOCKUP",
    "INFO: possible ",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "INFO: trying to register non-static key",
    "scheduling while atomic",
    "sleeping function called from invalid context",
    "refcount_t: ",
    "possibly leaking",
    "sysfs: cannot create duplicate",
    "list_add corruption",
    "list_del corruption",
    "DEBUG_LOCKS_WARN_ON",
    "invoked oom-killer",
];

/// Functions that act for their callers: the kernel's C helpers and its own Rust code, called from a module's.
const HELPERS: [&str; 4] = ["rust_helper_", "_R", "mem", "__mem"];

/// A report of a data race (KCSAN), read line by line. The kernel at large has races of its own, many of them known and
/// left as they are: ours are those where one of the two accesses is the driver's.
#[derive(Default)]
pub struct Race {
    /// The frames that follow are of an access whose function is not known yet.
    looks: bool,
}

/// What is known of a race after a line of its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing yet.
    Unknown,
    /// The driver takes part in it.
    Ours,
    /// The report has ended, and the driver does not.
    Theirs,
}

impl Race {
    /// A report that starts with this line.
    pub fn begins(text: &str) -> Option<Race> {
        text.contains("BUG: KCSAN: ").then(Race::default)
    }

    /// Takes the next line.
    pub fn line(&mut self, text: &str) -> Side {
        let text = text.trim_start();
        if text.starts_with("=====") {
            return Side::Theirs;
        }
        if text.contains(" bytes by ") && text.contains(" on cpu ") {
            self.looks = true;
        } else if self.looks && text.contains("+0x") {
            if text.ends_with("[rnbd]") {
                return Side::Ours;
            }
            self.looks = HELPERS.iter().any(|helper| text.starts_with(helper));
        }
        Side::Unknown
    }
}
