// SPDX-License-Identifier: GPL-2.0
//! Finds what no kernel should say, in the console's lines.

use serde::Serialize;

#[path = "../../reports.rs"]
mod reports;

use reports::{REPORTS, Race, Side};

/// Parts of a report. Alone, without a start before them, they are a report of an unknown kind.
const PARTS: [&str; 2] = ["Call Trace:", "---[ end trace"];

/// Lines that a part may come behind the start of its report: a stack has a few dozens.
const REPORT_LENGTH: usize = 80;

/// Lines within which two starts are of one report, such as a refcount's and the WARNING behind it.
const HEAD_LENGTH: usize = 5;

/// Said by healthy kernels on some processors.
const HARMLESS: [&str; 2] = ["Spectre V2 : ", "unchecked MSR access error"];

/// With these the kernel shows who asked for memory that it has not got. Where that is provoked it is no complaint.
const PROVOKED: [&str; 2] = ["__kmem_cache_create_args(", "vmalloc error: "];

/// What the tests are named that provoke it.
const PROVOKING: &str = "fault.";

/// The kernel's word that its own start is over. No driver of ours is there before it.
const STARTED: &str = "Run /init as init process";

/// Written by `rnbd-test` to the kernel log.
const MARK: &str = "rnbd-test: ";

/// KUnit's words: a suite begins. Its cases' results follow, and then its own.
const SUITE: &str = "# Subtest: ";

/// One report of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// Its first line, without the time.
    pub text: String,
    /// The test during which it appeared.
    pub test: Option<String>,
    /// Its line in the console log, from 1.
    pub line: usize,
    /// What followed it.
    pub context: Vec<String>,
}

/// Reads the console from its beginning.
#[derive(Default)]
pub struct Detector {
    started: bool,
    line: usize,
    test: Option<String>,
    last: Option<usize>,
    provoked: Option<usize>,
    found: Vec<Complaint>,
    suite: Option<Suite>,
    /// A data race, until it is known whose it is.
    race: Option<(Race, Complaint)>,
}

/// A suite of KUnit that runs.
struct Suite {
    name: String,
    /// How many reports there were when its present case began.
    found: usize,
}

impl Detector {
    /// Takes one line of the console; true when a report starts with it.
    pub fn line(&mut self, line: &str) -> bool {
        self.line += 1;
        let text = without_time(line);
        self.started |= text.contains(STARTED);
        if let Some(mark) = text.strip_prefix(MARK) {
            match mark.split_once(' ') {
                Some(("start", name)) => self.test = Some(name.trim().to_owned()),
                Some(("end", _)) => self.test = None,
                _ => {}
            }
            return false;
        }
        if let Some(name) = text.strip_prefix(SUITE) {
            self.suite = Some(Suite { name: name.to_owned(), found: self.found.len() });
            self.test = Some(name.to_owned());
            return false;
        }
        if self.case_ended(text) {
            // And so has what was reported during it.
            self.last = None;
            return false;
        }
        if let Some(known) = self.race(text) {
            return known;
        }
        if !self.started || HARMLESS.iter().any(|harmless| text.contains(harmless)) {
            return false;
        }
        let since = self.last.map_or(usize::MAX, |last| self.line - last);
        let within = since <= REPORT_LENGTH;
        let provoking = self.test.as_ref().is_some_and(|test| test.starts_with(PROVOKING));
        if provoking && PROVOKED.iter().any(|provoked| text.contains(provoked)) {
            self.provoked = Some(self.line);
        }
        let provoked = self.provoked.is_some_and(|at| self.line - at <= HEAD_LENGTH);
        let starts = since > HEAD_LENGTH && REPORTS.iter().any(|report| text.contains(report));
        if starts || (!within && !provoked && PARTS.iter().any(|part| text.contains(part))) {
            self.last = Some(self.line);
            let test = self.test.clone();
            self.found.push(Complaint { text: text.to_owned(), test, line: self.line, context: Vec::new() });
            return true;
        }
        if let (true, Some(complaint)) = (within, self.found.last_mut()) {
            complaint.context.push(text.to_owned());
        }
        false
    }

    /// Takes a line of a report of a data race. None if it is of another kind; true when it turns out to be ours.
    fn race(&mut self, text: &str) -> Option<bool> {
        if let Some(race) = Race::begins(text).filter(|_| self.started) {
            let (text, test, line) = (text.to_owned(), self.test.clone(), self.line);
            self.race = Some((race, Complaint { text, test, line, context: Vec::new() }));
            return Some(false);
        }
        let (race, complaint) = self.race.as_mut()?;
        complaint.context.push(text.to_owned());
        let side = race.line(text);
        if side == Side::Unknown && self.line - complaint.line <= REPORT_LENGTH {
            return Some(false);
        }
        let (_, complaint) = self.race.take()?;
        if side != Side::Ours {
            return Some(false);
        }
        // What follows is the rest of the report.
        self.last = Some(self.line);
        self.found.push(complaint);
        Some(true)
    }

    /// KUnit names a case when it has ended: what the kernel complained of since the one before is that case's.
    fn case_ended(&mut self, text: &str) -> bool {
        let Some(suite) = &mut self.suite else { return false };
        let result = text.strip_prefix("ok ").or_else(|| text.strip_prefix("not ok "));
        let Some((number, name)) = result.and_then(|result| result.split_once(' ')) else { return false };
        if number.parse::<u32>().is_err() {
            return false;
        }
        let name = name.split(' ').next().unwrap_or(name);
        if name == suite.name {
            self.suite = None;
            self.test = None;
            return true;
        }
        for complaint in &mut self.found[suite.found..] {
            complaint.test = Some(format!("{}.{name}", suite.name));
        }
        suite.found = self.found.len();
        true
    }

    /// The test that runs now, by its marks; of KUnit's, the suite.
    pub fn running(&self) -> Option<&str> {
        self.test.as_deref()
    }

    /// All reports so far.
    pub fn found(&self) -> &[Complaint] {
        &self.found
    }
}

/// `[   12.345678][  T123] text` without what is in the brackets.
fn without_time(line: &str) -> &str {
    let mut text = line.trim_end();
    while let Some((time, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        if !time.trim_start().starts_with(|c: char| c.is_ascii_digit() || c == 'T' || c == 'C') {
            break;
        }
        text = rest.trim_start();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(log: &str) -> Vec<Complaint> {
        let mut detector = Detector::default();
        detector.line("[    3.3] Run /init as init process");
        for line in log.lines() {
            detector.line(line);
        }
        detector.found().to_vec()
    }

    /// Lines as kernels print them, each from a report of its own kind.
    #[test]
    fn every_kind_of_report_is_found() {
        for line in [
            "WARNING: block/blk-mq.c:296 at blk_mq_unquiesce_queue+0x5c/0x70, CPU#1: kworker/u9:0/57",
            "WARNING: CPU: 1 PID: 88 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110",
            "BUG: kernel NULL pointer dereference, address: 0000000000000018",
            "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
            "BUG: scheduling while atomic: rnbd-test/99/0x00000002",
            "BUG: KASAN: slab-use-after-free in rnbd_queue_rq+0x1c/0x80 [rnbd]",
            "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
            "kernel BUG at block/blk-mq.c:1234!",
            "Oops: general protection fault, probably for non-canonical address: 0000 [#1] SMP NOPTI",
            "Oops: 0002 [#1] PREEMPT SMP KASAN",
            "general protection fault: 0000 [#1] SMP",
            "Kernel panic - not syncing: sysrq triggered crash",
            "UBSAN: array-index-out-of-bounds in drivers/block/nbd.c:100:5",
            "INFO: task qemu-nbd:201 blocked for more than 30 seconds.",
            "INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [rnbd-test:77]",
            "watchdog: Watchdog detected hard LOCKUP on cpu 0",
            "WARNING: possible circular locking dependency detected",
            "WARNING: possible recursive locking detected",
            "WARNING: inconsistent lock state",
            "INFO: trying to register non-static key.",
            "refcount_t: underflow; use-after-free.",
            "nbd: possibly leaking memory",
            "sysfs: cannot create duplicate filename '/devices/virtual/block/nbd0'",
            "list_add corruption. prev->next should be next (ffff), but was 0000",
            "DEBUG_LOCKS_WARN_ON(lock->magic != lock)",
            "rnbd-test invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=1000",
            "Call Trace:",
        ] {
            let complaints = found(&format!("[    5.123456] {line}\n"));
            assert_eq!(complaints.len(), 1, "{line}");
            assert_eq!(complaints[0].text, line);
        }
    }

    #[test]
    fn healthy_lines_are_not_reports() {
        let healthy = "[    4.1] rnbd: loading out-of-tree module taints kernel.\n\
            [    4.1] rnbd: module verification failed: signature and/or required key missing - tainting kernel\n\
            [    4.2] block nbd0: Receive control failed (result -32)\n\
            [    4.2] block nbd0: Possible stuck request 000: control (read@0,4096B). Runtime 30 seconds\n\
            [    4.3] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible\n\
            [    4.4] EXT4-fs (nbd0): mounted filesystem with ordered data mode\n\
            [    4.5] nbd0: detected capacity change from 0 to 131072\n\
            [    4.6] Warning: unable to open an initial console.\n\
            [    4.7] rnbd-test: start BUG: a_test_named_so\n";
        assert_eq!(found(healthy), []);
    }

    #[test]
    fn a_report_is_one_complaint_with_its_context_and_test() {
        let log = "[    4.0] rnbd-test: start first\n\
            [    5.0] rnbd-test: end first\n\
            [    5.0] rnbd-test: start second\n\
            [    5.1][   T77] ------------[ cut here ]------------\n\
            [    5.1][   T77] refcount_t: underflow; use-after-free.\n\
            [    5.1][   T77] WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#1: a/57\n\
            [    5.1][   T77] Modules linked in: rnbd(O)\n\
            [    5.1][   T77] Call Trace:\n\
            [    5.1][   T77] ---[ end trace 0000000000000000 ]---\n\
            [    6.0] rnbd-test: end second\n\
            [    6.5] BUG: later\n";
        let complaints = found(log);
        assert_eq!(complaints.len(), 2);
        assert_eq!(complaints[0].test.as_deref(), Some("second"));
        assert_eq!(complaints[0].line, 6);
        assert_eq!(complaints[0].context.len(), 4);
        assert_eq!((complaints[1].text.as_str(), complaints[1].test.as_deref()), ("BUG: later", None));
    }

    #[test]
    fn a_stack_that_was_provoked_is_no_report() {
        let log = |test: &str| {
            format!(
                "[    4.0] rnbd-test: start {test}\n\
                [    5.1] __kmem_cache_create_args(bio-96) failed with error -12\n\
                [    5.1] CPU: 0 UID: 0 PID: 916 Comm: exe\n\
                [    5.1] Call Trace:\n\
                [    5.1]  dump_stack+0x10/0x12\n"
            )
        };
        assert_eq!(found(&log("fault.load")).len(), 0);
        assert_eq!(found(&log("other")).len(), 1);
        let more = "[    5.2] BUG: KASAN: slab-use-after-free in x+0x1/0x2 [rnbd]\n[    5.2] Call Trace:\n";
        assert_eq!(found(&(log("fault.load") + more)).len(), 1);
        assert_eq!(found(&(log("fault.load") + &"x\n".repeat(9) + "Call Trace:\n")).len(), 1);
    }

    #[test]
    fn a_data_race_counts_if_the_driver_takes_part_in_it() {
        let report = |one: &str, other: &str| {
            format!(
                "[    5.0] ==================================================================\n\
                [    5.0] BUG: KCSAN: data-race in a / b\n\
                [    5.0] \n\
                [    5.0] write to 0xffff888100a0 of 8 bytes by task 77 on cpu 0:\n\
                [    5.0]  {one}\n\
                [    5.0]  blk_mq_dispatch_rq_list+0x1/0x2\n\
                [    5.0] \n\
                [    5.0] read to 0xffff888100a0 of 8 bytes by task 78 on cpu 1:\n\
                [    5.0]  {other}\n\
                [    5.0]  kthread+0x1/0x2\n\
                [    5.0] \n\
                [    5.0] value changed: 0x0 -> 0x1\n\
                [    5.0] Reported by Kernel Concurrency Sanitizer on:\n\
                [    5.0] CPU: 1 UID: 0 PID: 78 Comm: nbd0-recv0 Not tainted 7.3.4 #1\n\
                [    5.0] ==================================================================\n"
            )
        };
        let (theirs, ours) = ("unix_stream_read_generic+0x1/0x2", "_RNvNtCs_4rnbd6driver+0x1/0x2 [rnbd]");
        let called = format!("rust_helper_atomic_read+0x1/0x2\n[    5.0]  {ours}");
        let caller = format!("{theirs}\n[    5.0]  {ours}");
        for (one, other, count) in [
            (theirs, theirs, 0),
            (ours, theirs, 1),
            (theirs, ours, 1),
            (&called, theirs, 1),
            (theirs, &called, 1),
            (&caller, &caller, 0),
        ] {
            let log = report(one, other) + "[    6.0] BUG: later\n";
            let complaints = found(&log);
            assert_eq!(complaints.len(), count + 1, "{one} and {other}");
            assert_eq!(complaints[count].text, "BUG: later");
            if count == 1 {
                assert_eq!(complaints[0].text, "BUG: KCSAN: data-race in a / b");
                assert_eq!((complaints[0].line, complaints[0].context.len() > 10), (3, true));
            }
        }
    }

    #[test]
    fn a_report_during_a_case_of_kunit_is_that_cases() {
        let log = "[    4.0]     # Subtest: suite\n\
            [    4.0]     1..3\n\
            [    5.0]     ok 1 first\n\
            [    5.1] BUG: KASAN: slab-use-after-free in x+0x1/0x2 [rnbd]\n\
            [    5.2]     ok 2 second\n\
            [    5.3]     not ok 3 third # SKIP no\n\
            [    5.3] ok 1 suite\n\
            [    9.0] BUG: later\n";
        let complaints = found(log);
        assert_eq!(complaints.len(), 2);
        assert_eq!(complaints[0].test.as_deref(), Some("suite.second"));
        assert_eq!(complaints[1].test, None);
    }

    #[test]
    fn what_the_kernel_says_before_its_first_process_is_not_ours() {
        let mut detector = Detector::default();
        assert!(!detector.line("[    0.1] WARNING: CPU: 0 PID: 0 at arch/x86/kernel/tsc.c:1"));
        detector.line("[    3.3] Run /init as init process");
        assert!(detector.line("[    3.4] WARNING: mm/page_alloc.c:1 at alloc+0x1/0x2"));
    }
}
