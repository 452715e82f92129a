//! Running a scenario to exhaustion, and the name of what went wrong.

use std::cell::Cell;
use std::panic::{catch_unwind, set_hook, take_hook, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Once};

use crate::protocol::Protocol;
use crate::scenario::Scenario;

pub const LOST_WAKE_UP: &str = "lost wake-up: every thread is asleep";
pub const TORN_READ: &str = "torn read: a descriptor or payload is not there yet";
pub const PAYLOAD_REUSE: &str = "payload reuse: written while its reader may still read";
pub const LOST_END: &str = "lost end of stream: the end does not fit the frames";
pub const MISCOUNT: &str = "miscount: frames taken and lost are not the frames sent";
pub const LOST_FRAME: &str = "lost frame: what was not returned is not there for the successor";
pub const FALSE_ACCUSATION: &str = "false accusation: an honest consumer's count does not fit";

/// What checking a scenario came to.
pub struct Verdict {
    /// Executions looked at, up to the first harmful one.
    pub executions: usize,
    /// What went wrong, None if nothing did.
    pub harm: Option<String>,
}

fn name(message: &str) -> String {
    let known = [
        TORN_READ,
        PAYLOAD_REUSE,
        LOST_END,
        LOST_FRAME,
        FALSE_ACCUSATION,
        MISCOUNT,
    ];
    if message.contains("deadlock") {
        return LOST_WAKE_UP.to_owned();
    }
    let found = known.into_iter().find(|harm| message.contains(harm));
    found.unwrap_or(message).to_owned()
}

thread_local!(static CHECKING: Cell<bool> = const { Cell::new(false) });

/// A panic inside a check is its result, no news.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if !CHECKING.get() {
                loud(panic);
            }
        }));
    });
}

/// Run `scenario` through every execution within its bounds.
pub fn check(scenario: &Scenario, protocol: Protocol) -> Verdict {
    let run = scenario.run;
    explore(scenario.preemptions, move || run(protocol))
}

/// Run `threads` through every execution with at most so many preemptions, None for all.
pub fn explore(preemptions: Option<usize>, threads: impl Fn() + Sync + Send + 'static) -> Verdict {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = executions.clone();
    hush();
    CHECKING.set(true);
    let checked = catch_unwind(AssertUnwindSafe(|| {
        model.check(move || {
            counted.fetch_add(1, Relaxed);
            threads();
        });
    }));
    CHECKING.set(false);
    let harm = checked.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        name(&text.unwrap_or_else(|| "a panic without words".to_owned()))
    });
    Verdict {
        executions: executions.load(Relaxed),
        harm,
    }
}
