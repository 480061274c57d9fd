// SPDX-License-Identifier: GPL-2.0
//! The table: for the terminal and, the same, for a Markdown file.

use std::fmt::Write;

use super::line::Subject;
use super::results::{Cost, JobResult, Measure, Results, ScalingCost};
use super::statistics::Ratio;

const SUBJECTS: [Subject; 4] = [Subject::Nbd, Subject::Rnbd, Subject::Ublk, Subject::Limit];

fn ratio(ratio: Option<Ratio>) -> String {
    match ratio {
        Some(Ratio { mean, interval: Some((low, high)) }) => format!("{mean:.2} [{low:.2}, {high:.2}]"),
        Some(Ratio { mean, interval: None }) => format!("{mean:.2}"),
        None => "-".to_owned(),
    }
}

fn job_row(job: &JobResult, in_time: Option<&Results>) -> Vec<String> {
    let mut row = vec![job.name.clone()];
    let of = |subject, figure: &dyn Fn(&Cost) -> Option<String>| {
        job.costs.get(&subject).and_then(figure).unwrap_or_else(none)
    };
    for subject in SUBJECTS {
        row.push(of(subject, &|cost| {
            Some(format!("{:.1} ±{:.1}%", cost.all.median, cost.all.spread * 50.0))
        }));
    }
    row.push(ratio(job.speedup));
    if let Some(in_time) = in_time {
        let same = in_time.jobs.iter().find(|other| other.name == job.name);
        row.push(ratio(same.and_then(|job| job.speedup)));
    }
    row.push(ratio(job.speedup_without_server));
    row.push(job.over_limit.map_or_else(none, |over| format!("{:.2}", over.mean)));
    let of_drivers = |figure: &dyn Fn(&Cost) -> Option<String>| {
        [Subject::Nbd, Subject::Rnbd].map(|subject| of(subject, figure)).join(" / ")
    };
    row.push(of_drivers(&|cost| Some(format!("{:.1}", cost.kernel?))));
    row.push(of_drivers(&|cost| Some(format!("{:.2}", cost.requests))));
    row.push(of_drivers(&|cost| Some(format!("{:.0}%", cost.idle? * 100.0))));
    row.push(
        SUBJECTS.map(|subject| of(subject, &|cost| Some(cost.connections_used?.to_string()))).join(" / "),
    );
    row
}

fn none() -> String {
    "-".to_owned()
}

/// Rows of equal width, the first one above a line.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            widths.iter().for_each(|width| text.push_str(&format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}

fn words(titles: &[&str]) -> Vec<String> {
    titles.iter().map(|title| (*title).to_owned()).collect()
}

/// The boot in which time was taken, for one in which instructions were counted.
pub fn in_time<'a>(results: &Results, boots: &'a [Results]) -> Option<&'a Results> {
    let counted = results.origin.measure == Measure::Instructions;
    boots.iter().find(|boot| counted && boot.origin.measure == Measure::Time)
}

/// The jobs. What has been measured in time, too, has its ratio beside that in instructions. What is the same of all jobs, is
/// told once.
pub fn jobs(results: &Results, boots: &[Results]) -> String {
    let in_time = in_time(results, boots);
    let mut titles = vec!["job", "nbd.ko", "rnbd.ko", "ublk", "limit", "times nbd.ko"];
    titles.extend(in_time.map(|_| "in time"));
    let figures = titles.len();
    titles.extend(["without server", "of limit", "in the kernel", "requests", "idle", "sockets used"]);
    let mut rows = vec![words(&titles)];
    rows.extend(results.jobs.iter().map(|job| job_row(job, in_time)));
    let mut same = Vec::new();
    for column in (figures..titles.len()).rev() {
        let first = rows.get(1).map(|row| row[column].clone()).unwrap_or_default();
        if rows.len() > 2 && rows[1..].iter().all(|row| row[column] == first) {
            rows.iter_mut().for_each(|row| drop(row.remove(column)));
            same.insert(0, format!("{} {first}", titles[column]));
        }
    }
    let same =
        if same.is_empty() { String::new() } else { format!("\nThe same of all: {}.\n", same.join(", ")) };
    aligned(&rows) + &same
}

/// Attaching and detaching.
pub fn latencies(results: &Results) -> String {
    let mut rows = vec![words(&["", "nbd.ko median", "p99", "rnbd.ko median", "p99", "times nbd.ko"])];
    for result in &results.latencies {
        let mut row = vec![format!("{} by {}", result.operation, result.interface)];
        for subject in [Subject::Nbd, Subject::Rnbd] {
            let times = result.times.get(&subject);
            row.push(times.map_or("-".to_owned(), |(median, _)| format!("{median:.0} µs")));
            row.push(times.map_or("-".to_owned(), |(_, p99)| format!("{p99:.0} µs")));
        }
        row.push(ratio(result.speedup));
        rows.push(row);
    }
    aligned(&rows)
}

/// With more and more of something.
pub fn scaling(results: &Results) -> String {
    let titles = ["", "nbd.ko", "rnbd.ko", "nbd.ko connects", "rnbd.ko", "nbd.ko disconnects", "rnbd.ko"];
    let mut rows = vec![words(&titles)];
    for point in &results.scaling {
        let mut row = vec![format!("{} {}", point.count, point.axis)];
        let figures: [fn(&ScalingCost) -> String; 3] = [
            |cost| format!("{:.1} ±{:.1}%", cost.cost.median, cost.cost.spread * 50.0),
            |cost| format!("{:.0} µs", cost.connect),
            |cost| format!("{:.0} µs", cost.disconnect),
        ];
        for figure in figures {
            for subject in [Subject::Nbd, Subject::Rnbd] {
                row.push(point.costs.get(&subject).map_or_else(none, figure));
            }
        }
        rows.push(row);
    }
    aligned(&rows)
}

const LEGEND: &str = "Each figure is the median, and half of the range between the rounds.

- *times nbd.ko*: nbd.ko's figure over rnbd.ko's, the geometric mean over the rounds, each compared with itself, and its 95 % \
confidence interval; *in time*: the same in time, from the boot that is told of below.
- *ublk*: the userspace way, a client behind ublk that does to the socket what the limit does.
- *limit*: the same requests over the same socket to the same server, by a program, without a driver; *of limit*: what rnbd.ko \
takes of that.
- *without server*: times nbd.ko without what the server's process takes, its system calls included.
- *in the kernel*: what of it the kernel took, the server's system calls and interrupts included, by samples in a round of its \
own: nbd.ko / rnbd.ko.
- *requests*: those on the wire for an I/O; *idle*: the share of the time in which no task ran.
- *sockets used*: those that had a request, of nbd.ko / rnbd.ko / ublk / limit. A driver uses one for each processor, so that \
jobs with four sockets are measured with four processors. Those take turns at running: what they are told of their time holds \
the others' turns, so that nothing is said there of the server, the kernel and idle time.
- *-nbdkit* and *-qemu-nbd*: jobs with nbdkit's memory plugin and with qemu-nbd on a raw file in memory as the server; the \
others have a server that is made for this, and takes less than any other.
";

/// One boot as Markdown.
fn section(results: &Results, boots: &[Results]) -> String {
    let (origin, plan) = (&results.origin, &results.plan);
    let title = match (origin.measure, origin.turns) {
        (Measure::Instructions, false) => "Instructions",
        (Measure::Instructions, true) => "Instructions, several processors",
        (Measure::Time, _) => "Time",
    };
    let mut text = format!(
        "\n## {title}\n\nIn {}. {}, {} rounds in one boot, order of drivers and jobs by seed {}, {}.\n\n{}",
        origin.measure.unit(),
        origin.machine,
        plan.rounds,
        plan.seed,
        plan.fio,
        jobs(results, boots),
    );
    if !results.latencies.is_empty() {
        let _ = write!(
            text,
            "\nAttaching and detaching, in the guest's time, waits included:\n\n{}",
            latencies(results)
        );
    }
    if !results.scaling.is_empty() {
        let _ = write!(
            text,
            "\nThe cost of an I/O (random read 4 KiB at depth 32; with devices, all of them busy, at depth 4 on each), and attaching \
             and detaching one more, when there is more and more of something:\n\n{}",
            scaling(results)
        );
    }
    text
}

/// The whole as Markdown.
pub fn markdown(boots: &[Results]) -> String {
    let Some(first) = boots.first() else { return String::new() };
    let origin = &first.origin;
    let title = if origin.quick { "Quick benchmark" } else { "Benchmark" };
    let mut text = format!(
        "<!-- Written by make bench. -->\n# {title} on {}\n\nCommit {}, kernel {}.\n\n{LEGEND}",
        origin.date, origin.commit, origin.kernel
    );
    boots.iter().for_each(|results| text += &section(results, boots));
    text
}
