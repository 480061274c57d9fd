// SPDX-License-Identifier: GPL-2.0
//! Every call against every way in which the other side can misbehave: each ends within its bound (invariant G6). The
//! bounds are those of [`table`], and so is the table in docs/design.md. Whoever exceeds one by more than the patience
//! that the tests have with everything hangs. How long each took is printed, and nothing is made of it.

mod calls;
mod conditions;
mod scene;
pub mod table;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use self::calls::{Call, Made};
use self::conditions::Condition;
use self::scene::{Interface, Scene, Stage};
use self::table::{Bound, answer, bound};
use super::{Checks, Context, Test, ours_only, tried};

pub const TESTS: &[Test] = &[
    of("bounds.silent", Condition::Silent, |context| run(context, Condition::Silent)),
    of("bounds.slow", Condition::Slow, |context| run(context, Condition::Slow)),
    of("bounds.not_reading", Condition::NotReading, |context| run(context, Condition::NotReading)),
    of("bounds.half_closed", Condition::HalfClosed, |context| run(context, Condition::HalfClosed)),
    of("bounds.dead", Condition::Dead, |context| run(context, Condition::Dead)),
    of("bounds.dead_waiting", Condition::DeadWaiting, |context| run(context, Condition::DeadWaiting)),
    of("bounds.holder_stopped", Condition::HolderStopped, |context| run(context, Condition::HolderStopped)),
    of("bounds.holder_frozen", Condition::HolderFrozen, |context| run(context, Condition::HolderFrozen)),
    of("bounds.client_stopped", Condition::ClientStopped, |context| run(context, Condition::ClientStopped)),
    of("bounds.client_frozen", Condition::ClientFrozen, |context| run(context, Condition::ClientFrozen)),
    of("bounds.limits_writer", Condition::LimitsWriter, |context| run(context, Condition::LimitsWriter)),
    of("bounds.scan_waiting", Condition::ScanWaiting, |context| run(context, Condition::ScanWaiting)),
    of("bounds.memory_short", Condition::MemoryShort, |context| run(context, Condition::MemoryShort)),
];

const fn of(name: &'static str, condition: Condition, body: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, condition.about(), body).limit(240)
}

/// Time for calls to come to where they wait. If it is too short they are met before that.
const SETTLED: Duration = Duration::from_millis(300);

/// The calls of one condition, and what they gave.
struct Run {
    condition: Condition,
    stage: Stage,
    checks: Checks,
    made: usize,
}

fn run(context: &Context, condition: Condition) -> Result<()> {
    ours_only(context)?;
    let stage = Stage::new(context, condition)?;
    let mut run = Run { condition, stage, checks: Checks::default(), made: 0 };
    if !condition.is_clients() {
        run.together(Interface::Netlink)?;
    }
    if !condition.is_lost() {
        run.together(Interface::Ioctl)?;
    }
    for call in Call::ALL {
        if run.is_alone(call) {
            run.alone(call).with_context(|| format!("{}, alone", call.name()))?;
        }
    }
    tried(run.made, "calls");
    run.checks.done()
}

impl Run {
    /// Whether nothing else can be done with the scene after it, or beside it.
    fn is_alone(&self, call: Call) -> bool {
        match call {
            Call::IoctlDisconnect => self.condition.is_lost() || self.condition.is_clients(),
            Call::ClearSock
            | Call::ConnectAnew
            | Call::Handover
            | Call::LastClose
            // What waits for the processor to go keeps others from more than the device.
            | Call::CpuOffline => true,
            // They are taken where one is dead.
            Call::ReconfigureSockets => self.condition.is_lost(),
            _ => false,
        }
    }

    fn by(&self, call: Call) -> Interface {
        match self.condition {
            condition if condition.is_clients() => Interface::Ioctl,
            condition if !condition.is_lost() && call.is_ioctl() => Interface::Ioctl,
            _ => Interface::Netlink,
        }
    }

    /// One scene for all that leave it as it is: one by one those that end by themselves, then the others all at once,
    /// until DISCONNECT.
    fn together(&mut self, by: Interface) -> Result<()> {
        let mut scene = self.stage.set(by, true)?;
        let others = |call: &Call| !self.is_alone(*call) && *call != Call::Disconnect && self.by(*call) == by;
        let calls = Call::ALL.into_iter().filter(others);
        let (waiting, ending): (Vec<_>, Vec<_>) =
            calls.partition(|call| bound(*call, self.condition) == Bound::UntilEnd);
        for call in ending {
            if self.possible(call) {
                self.ends(&mut scene, call)?;
            }
        }
        ensure!(scene.attached()?, "it is attached no more");
        let mut made = Vec::new();
        for call in waiting {
            if self.possible(call) {
                made.push(call.begin(&mut scene.hands)?);
            }
        }
        if by == Interface::Netlink || self.condition.is_clients() {
            self.end_by_disconnect(&mut scene, made)?;
        } else {
            self.ends(&mut scene, Call::IoctlDisconnect)?;
        }
        self.stage.end(scene)
    }

    /// A scene of its own.
    fn alone(&mut self, call: Call) -> Result<()> {
        if !self.possible(call) {
            return Ok(());
        }
        let mut scene = self.stage.set(self.by(call), call != Call::LastClose)?;
        if bound(call, self.condition) == Bound::UntilEnd {
            let made = vec![call.begin(&mut scene.hands)?];
            self.end_by_disconnect(&mut scene, made)?;
        } else {
            self.ends(&mut scene, call)?;
        }
        self.stage.end(scene)
    }

    fn possible(&self, call: Call) -> bool {
        if matches!(bound(call, self.condition), Bound::NotApplicable(_)) {
            return false;
        }
        if let Some(why) = call.impossible() {
            println!("{}: not tried, {why}", call.name());
            return false;
        }
        true
    }

    /// It must end by itself.
    fn ends(&mut self, scene: &mut Scene, call: Call) -> Result<()> {
        let made = call.begin(&mut scene.hands)?;
        self.judge(made, Instant::now(), "")
    }

    /// They may wait until somebody disconnects.
    fn end_by_disconnect(&mut self, scene: &mut Scene, mut made: Vec<Made>) -> Result<()> {
        std::thread::sleep(SETTLED);
        for call in &mut made {
            if call.ended() {
                println!("{}: did not wait", call.call.name());
            }
        }
        let start = Instant::now();
        self.ends(scene, Call::Disconnect)?;
        for call in made {
            self.judge(call, start, " after DISCONNECT")?;
        }
        Ok(())
    }

    fn judge(&mut self, mut made: Made, since: Instant, after: &str) -> Result<()> {
        let call = made.call;
        let seconds = match bound(call, self.condition) {
            Bound::Within(seconds) => seconds,
            Bound::Answered | Bound::UntilEnd | Bound::NotApplicable(_) => 0,
        };
        let (own, given) = made.end(seconds, after)?;
        let took = if after.is_empty() { own } else { own.min(since.elapsed()) };
        println!("{}: {} ms{after}, {given}", call.name(), took.as_millis());
        if let Some(want) = answer(call, self.condition) {
            self.checks.equal(call.name(), given, format!("{want:?}"));
        }
        self.made += 1;
        Ok(())
    }
}
