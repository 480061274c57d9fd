// SPDX-License-Identifier: GPL-2.0
//! The table: for the terminal and, the same, for a Markdown file.

use std::fmt::Write;

use super::line::Subject;
use super::results::{JobResult, Results};
use super::statistics::Ratio;

const SUBJECTS: [Subject; 3] = [Subject::Nbd, Subject::Rnbd, Subject::Limit];

fn ratio(ratio: Option<Ratio>) -> String {
    match ratio {
        Some(Ratio { mean, interval: Some((low, high)) }) => format!("{mean:.2} [{low:.2}, {high:.2}]"),
        Some(Ratio { mean, interval: None }) => format!("{mean:.2}"),
        None => "-".to_owned(),
    }
}

fn job_row(job: &JobResult) -> Vec<String> {
    let mut row = vec![job.name.clone()];
    for subject in SUBJECTS {
        row.push(job.costs.get(&subject).map_or("-".to_owned(), |cost| {
            format!("{:.1} ±{:.1}%", cost.all.median, cost.all.spread * 50.0)
        }));
    }
    row.push(ratio(job.speedup));
    row.push(ratio(job.speedup_without_server));
    row.push(job.over_limit.map_or("-".to_owned(), |over| format!("{:.2}", over.mean)));
    let of_drivers = |figure: fn(&super::results::Cost) -> String| {
        let drivers = [Subject::Nbd, Subject::Rnbd];
        drivers.map(|subject| job.costs.get(&subject).map_or("-".to_owned(), figure)).join(" / ")
    };
    row.push(of_drivers(|cost| format!("{:.2}", cost.requests)));
    row.push(of_drivers(|cost| format!("{:.0}%", cost.idle * 100.0)));
    let used =
        |subject| job.costs.get(subject).map_or("-".to_owned(), |cost| cost.connections_used.to_string());
    row.push(SUBJECTS.iter().map(used).collect::<Vec<_>>().join(" / "));
    row
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

/// The jobs.
pub fn jobs(results: &Results) -> String {
    let titles = [
        "job",
        "nbd.ko",
        "rnbd.ko",
        "limit",
        "times nbd.ko",
        "without server",
        "of limit",
        "requests",
        "idle",
        "sockets used",
    ];
    let mut rows = vec![words(&titles)];
    rows.extend(results.jobs.iter().map(job_row));
    aligned(&rows)
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

/// The whole as Markdown.
pub fn markdown(results: &Results) -> String {
    let origin = &results.origin;
    let plan = &results.plan;
    format!(
        "<!-- Written by make bench. -->\n# {} on {}: {}\n\nCommit {}, kernel {}, {}. {} rounds in one boot, \
         order of drivers and jobs by seed {}, {}.\n\nFigures are {}: median, and half of the range between the rounds. \
         *times nbd.ko* is nbd.ko's figure over rnbd.ko's, the geometric mean over rounds and its 95 % confidence \
         interval; *without server* is the same without what the server's process takes, its system calls included. \
         *limit* is the same requests over the same socket without a driver, *of limit* what rnbd.ko takes of \
         that. *requests* are those on the wire for an I/O, and *idle* the share of the time in which no task ran: \
         nbd.ko / rnbd.ko. *sockets used* are those that had a request, of nbd.ko / rnbd.ko / limit: a driver uses one \
         for each processor, so that with fewer processors than sockets a job with several says nothing of several, \
         and is no match for the limit, which uses them all.\n\n{}\nAttaching and detaching, in the guest's time, waits included:\n\n{}",
        if origin.quick { "Quick benchmark" } else { "Benchmark" },
        origin.date,
        origin.measure.name(),
        origin.commit,
        origin.kernel,
        origin.machine,
        plan.rounds,
        plan.seed,
        plan.fio,
        origin.measure.unit(),
        jobs(results),
        latencies(results),
    )
}
