// SPDX-License-Identifier: GPL-2.0
//! Output for people: calm lines on standard output, and on a terminal one more that shows what is going on. Elsewhere
//! what goes on for a while gets a line when it has done so, that a log does not stay empty.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

/// Where lines go.
pub struct Terminal {
    progress: ProgressBar,
    /// Where there is no terminal.
    announcer: Option<Sender<String>>,
    hidden: bool,
}

/// What takes less needs no line that it goes on.
const SHORT: Duration = Duration::from_secs(5);

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
        let announcer = (!std::io::stderr().is_terminal()).then(|| {
            let (sender, receiver) = channel();
            thread::spawn(move || announce(&receiver));
            sender
        });
        Terminal { progress, announcer, hidden: false }
    }

    /// Shows nothing.
    pub fn hidden() -> Terminal {
        Terminal { progress: ProgressBar::hidden(), announcer: None, hidden: true }
    }

    /// Shows what is going on, from now.
    pub fn busy(&self, text: &str) {
        self.announce(text);
        self.progress.reset_elapsed();
        self.progress.set_message(text.to_owned());
        self.progress.enable_steady_tick(Duration::from_millis(100));
    }

    /// Nothing is going on any more.
    pub fn idle(&self) {
        self.announce("");
        self.progress.finish_and_clear();
    }

    fn announce(&self, text: &str) {
        if let Some(announcer) = &self.announcer {
            // It ends with the process alone.
            let _ = announcer.send(text.to_owned());
        }
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

/// Says on standard error what has been going on for a while; nothing is an empty text.
fn announce(receiver: &Receiver<String>) {
    let mut next = receiver.recv().ok();
    while let Some(text) = next {
        next = match receiver.recv_timeout(SHORT) {
            Ok(text) => Some(text),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                if !text.is_empty() {
                    let _ = writeln!(std::io::stderr(), "  ...    {text}");
                }
                receiver.recv().ok()
            }
        };
    }
}

/// A time as people like it.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
