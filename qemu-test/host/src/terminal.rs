// SPDX-License-Identifier: GPL-2.0
//! Output for people: calm lines on standard output, and on a terminal one more that shows what is going on.

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

/// Where lines go.
pub struct Terminal {
    progress: ProgressBar,
    hidden: bool,
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const NOTE: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

impl Terminal {
    /// Lines on standard output; what is going on, on standard error when that is a terminal.
    pub fn new() -> Terminal {
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}  {elapsed}") {
            progress.set_style(style);
        }
        Terminal { progress, hidden: false }
    }

    /// Shows nothing.
    pub fn hidden() -> Terminal {
        Terminal { progress: ProgressBar::hidden(), hidden: true }
    }

    /// Shows what is going on, from now.
    pub fn busy(&self, text: &str) {
        self.progress.reset_elapsed();
        self.progress.set_message(text.to_owned());
        self.progress.enable_steady_tick(Duration::from_millis(100));
    }

    /// Nothing is going on any more.
    pub fn idle(&self) {
        self.progress.finish_and_clear();
    }

    /// A line as it is.
    pub fn line(&self, text: &str) {
        if self.hidden {
            return;
        }
        self.progress.suspend(|| {
            // Whoever reads has gone: the exit status still tells the result.
            let _ = writeln!(anstream::stdout(), "{text}");
        });
    }

    /// What went well.
    pub fn good(&self, text: &str) {
        self.line(&format!("  {GOOD}ok{GOOD:#}     {text}"));
    }

    /// What went wrong.
    pub fn bad(&self, text: &str) {
        self.line(&format!("  {BAD}FAIL{BAD:#}   {text}"));
    }

    /// What is neither.
    pub fn note(&self, word: &str, text: &str) {
        self.line(&format!("  {NOTE}{word:<5}{NOTE:#}  {text}"));
    }

    /// More about the line before.
    pub fn detail(&self, text: &str) {
        self.line(&format!("         {DIM}|{DIM:#} {text}"));
    }
}

/// A time as people like it.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
