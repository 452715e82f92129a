//! Small situations, each with the threads that matter. A scenario's first steps happen before the threads part.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::thread::spawn;

use crate::consumer::{drop_memory, give_back, stamp, Consumer, Frame};
use crate::memory::Route;
use crate::producer::{send_shared, Producer};
use crate::protocol::{Mutant, Protocol};
use crate::verdict::{LOST_END, LOST_FRAME};

/// A situation, and how many preemptions are tried in it (None: every interleaving).
pub struct Scenario {
    pub name: &'static str,
    pub preemptions: Option<usize>,
    pub run: fn(Protocol),
}

/// The one of that name.
pub fn named(name: &str) -> &'static Scenario {
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.unwrap_or_else(|| panic!("there is no scenario {name:?}"))
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    every("a consumer sleeps for two frames", consumer_sleeps),
    every("a consumer naps for two frames", nap_filled),
    every("a consumer naps, and one frame comes", nap_over),
    every("a producer sleeps for its one credit", producer_sleeps),
    every("a producer sleeps for room", room),
    every("frames come back out of order", reuse),
    bounded("two threads give back, the producer sleeps until low", 3, returners),
    every("a held frame is skipped", skip),
    every("the stream ends", end),
    every("the consumer detaches", detach),
    every("the consumer holds more than low and sleeps", starve),
    bounded("the consumer arms in passing, then sleeps holding", 3, passing),
    bounded("a frame comes back while the consumer sleeps", 3, asleep),
    bounded("three frames with one credit", 2, stream),
    every("a consumer sleeps for a run", run),
    bounded("a run comes round a held frame", 3, run_with_skip),
    every("memory is dropped while a frame of it comes back", dropped),
    bounded("the consumer dies after a stamp, the producer sleeps", 2, dies_stamped),
    bounded("the consumer dies holding, the producer sleeps", 2, dies_holding),
    bounded(
        "the consumer dies between two frames, the producer goes on",
        1,
        dies_between,
    ),
    bounded("a successor sleeps before the producer knows it", 2, heir_sleeps),
];

const fn every(name: &'static str, run: fn(Protocol)) -> Scenario {
    Scenario {
        name,
        preemptions: None,
        run,
    }
}

const fn bounded(name: &'static str, preemptions: usize, run: fn(Protocol)) -> Scenario {
    Scenario {
        name,
        preemptions: Some(preemptions),
        run,
    }
}

struct Ends {
    route: Arc<Route>,
    producer: Producer,
    consumer: Consumer,
}

impl Ends {
    fn new(protocol: Protocol, credits: u64, low: u64, extents: usize) -> Self {
        let route = Arc::new(Route::new(protocol, 2, credits, extents));
        Ends {
            producer: Producer::new(&route, low),
            consumer: Consumer::new(&route),
            route,
        }
    }

    /// Send and take `count` frames while nothing else happens.
    fn pass(&mut self, count: usize) -> Vec<Frame> {
        let pass = |_| {
            assert!(self.producer.try_send());
            self.consumer.next_frame().expect(LOST_END)
        };
        (0..count).map(pass).collect()
    }
}

fn consumer_sleeps(protocol: Protocol) {
    let Ends {
        mut producer,
        mut consumer,
        ..
    } = Ends::new(protocol, 2, 0, 2);
    let taker = spawn(move || {
        for _ in 0..2 {
            consumer.next_frame().expect(LOST_END);
        }
    });
    assert!(producer.send() && producer.send());
    taker.join().unwrap();
}

/// The second frame rings, and the nap's limit need not.
fn nap_filled(protocol: Protocol) {
    let Ends {
        mut producer,
        mut consumer,
        ..
    } = Ends::new(protocol, 2, 0, 2);
    let taker = spawn(move || {
        consumer.nap().expect(LOST_END);
        consumer.next_frame().expect(LOST_END);
    });
    assert!(producer.send() && producer.send());
    taker.join().unwrap();
}

/// Nothing but the nap's limit rings for the one frame, before it comes or after.
fn nap_over(protocol: Protocol) {
    let Ends {
        route,
        mut producer,
        mut consumer,
    } = Ends::new(protocol, 2, 0, 2);
    let taker = spawn(move || {
        consumer.nap().expect(LOST_END);
    });
    let limit = (!protocol.is(Mutant::NapLimitMissing)).then(|| spawn(move || route.consumer_bell.ring()));
    assert!(producer.send());
    taker.join().unwrap();
    if let Some(limit) = limit {
        limit.join().unwrap();
    }
}

fn one_out(protocol: Protocol, credits: u64) {
    let mut ends = Ends::new(protocol, credits, 0, 1);
    let frame = ends.pass(1).pop().unwrap();
    let route = ends.route.clone();
    let returner = spawn(move || give_back(&route, frame));
    assert!(ends.producer.send());
    returner.join().unwrap();
}

fn producer_sleeps(protocol: Protocol) {
    one_out(protocol, 1);
}

fn room(protocol: Protocol) {
    one_out(protocol, 2);
}

fn reuse(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let frames = ends.pass(2);
    let route = ends.route.clone();
    let returner = spawn(move || {
        for frame in frames.into_iter().rev() {
            give_back(&route, frame);
        }
    });
    for _ in 0..2 {
        ends.producer.try_send();
    }
    returner.join().unwrap();
}

fn returners(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let frames = ends.pass(2);
    let give = |frame: Frame| {
        let route = ends.route.clone();
        spawn(move || give_back(&route, frame))
    };
    let threads: Vec<_> = frames.into_iter().map(give).collect();
    assert!(ends.producer.send());
    for thread in threads {
        thread.join().unwrap();
    }
}

fn skip(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let last = ends.pass(2).pop().unwrap();
    give_back(&ends.route, last);
    let mut consumer = ends.consumer;
    let taker = spawn(move || {
        consumer.next_frame().expect(LOST_END);
    });
    assert!(ends.producer.send());
    taker.join().unwrap();
}

fn end(protocol: Protocol) {
    let Ends {
        mut producer,
        mut consumer,
        ..
    } = Ends::new(protocol, 2, 0, 1);
    let taker = spawn(move || {
        consumer.next_frame().expect(LOST_END);
        assert!(consumer.next_frame().is_none(), "{LOST_END}");
    });
    assert!(producer.send());
    producer.close();
    taker.join().unwrap();
}

fn detach(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 1, 0, 1);
    ends.pass(1);
    let mut consumer = ends.consumer;
    let leaver = spawn(move || consumer.detach());
    assert!(!ends.producer.send());
    leaver.join().unwrap();
}

/// The consumer gives one of two frames back and sleeps for a third, which the producer may send though it waits for both.
fn hold(protocol: Protocol, passing: bool) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let mut frames = ends.pass(2);
    let (route, mut consumer) = (ends.route.clone(), ends.consumer);
    let taker = spawn(move || {
        give_back(&route, frames.pop().unwrap());
        if passing {
            consumer.arm_in_passing();
        }
        consumer.next_frame().expect(LOST_END);
    });
    assert!(ends.producer.send());
    taker.join().unwrap();
}

fn starve(protocol: Protocol) {
    hold(protocol, false);
}

fn passing(protocol: Protocol) {
    hold(protocol, true);
}

fn asleep(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let mut frames = ends.pass(2);
    let (route, mut consumer) = (ends.route.clone(), ends.consumer);
    let taker = spawn(move || {
        consumer.next_frame().expect(LOST_END);
    });
    let returner = spawn(move || give_back(&route, frames.pop().unwrap()));
    assert!(ends.producer.send());
    taker.join().unwrap();
    returner.join().unwrap();
}

fn stream(protocol: Protocol) {
    let Ends {
        route,
        mut producer,
        mut consumer,
    } = Ends::new(protocol, 1, 0, 1);
    let taker = spawn(move || {
        let mut taken = 0;
        while let Some(frame) = consumer.next_frame() {
            give_back(&route, frame);
            taken += 1;
        }
        assert!(taken == 3, "{LOST_END}");
    });
    for _ in 0..3 {
        assert!(producer.send());
    }
    producer.close();
    taker.join().unwrap();
}

fn run(protocol: Protocol) {
    let Ends {
        mut producer,
        mut consumer,
        ..
    } = Ends::new(protocol, 2, 0, 2);
    let taker = spawn(move || {
        for _ in 0..2 {
            consumer.next_frame().expect(LOST_END);
        }
    });
    producer.send_run();
    taker.join().unwrap();
}

/// Four slots: one is held, and the run's second frame has to pass over it.
fn run_with_skip(protocol: Protocol) {
    let route = Arc::new(Route::new(protocol, 4, 3, 3));
    let mut ends = Ends {
        producer: Producer::new(&route, 0),
        consumer: Consumer::new(&route),
        route,
    };
    let held = ends.pass(1);
    for frame in ends.pass(2) {
        give_back(&ends.route, frame);
    }
    ends.producer.take_back();
    let mut consumer = ends.consumer;
    let taker = spawn(move || {
        for _ in 0..2 {
            consumer.next_frame().expect(LOST_END);
        }
    });
    ends.producer.send_run();
    taker.join().unwrap();
    drop(held);
}

/// A producer that lies says that it has given the memory up.
fn dropped(protocol: Protocol) {
    let route = Arc::new(Route::new(protocol, 2, 1, 1).dropping());
    let mut ends = Ends {
        producer: Producer::new(&route, 0),
        consumer: Consumer::new(&route),
        route,
    };
    let frame = ends.pass(1).pop().unwrap();
    let (route, extent) = (ends.route.clone(), frame.extent());
    let returner = spawn(move || give_back(&route, frame));
    drop_memory(&ends.route, extent);
    returner.join().unwrap();
}

/// The consumer has done `last` with the frames that it took, and is dead, which the kernel has told: its thread has
/// ended. A thread of the producer's process sends one more; another makes the successor, links it, and takes `expected`.
fn succession(ends: Ends, last: fn(&Route, Vec<Frame>), frames: Vec<Frame>, expected: &'static [u64]) {
    let route = ends.route.clone();
    let producer = Arc::new(Mutex::new(ends.producer));
    let shared = producer.clone();
    let supervisor = spawn(move || {
        let dying = route.clone();
        spawn(move || last(&dying, frames)).join().unwrap();
        let mut heir = Consumer::inherit(&route);
        shared.lock().unwrap().relink(1);
        for &number in expected {
            let frame = heir.next_frame().expect(LOST_END);
            assert!(frame.number() == number, "{LOST_FRAME}");
            give_back(&route, frame);
        }
    });
    send_shared(&producer);
    supervisor.join().unwrap();
}

fn dies_stamped(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 1, 0, 1);
    let frames = ends.pass(1);
    let last = |route: &Route, mut frames: Vec<Frame>| {
        let frame = frames.pop().unwrap();
        frame.read(route);
        stamp(route, &frame);
    };
    succession(ends, last, frames, &[1]);
}

fn dies_holding(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 1, 0, 1);
    let frame = ends.pass(1).pop().unwrap();
    give_back(&ends.route, frame);
    let frames = ends.pass(1);
    let last = |route: &Route, frames: Vec<Frame>| frames[0].read(route);
    succession(ends, last, frames, &[1, 2]);
}

fn dies_between(protocol: Protocol) {
    let mut ends = Ends::new(protocol, 2, 0, 2);
    let frames = ends.pass(2);
    let last = |route: &Route, mut frames: Vec<Frame>| give_back(route, frames.pop().unwrap());
    succession(ends, last, frames, &[0, 2]);
}

fn heir_sleeps(protocol: Protocol) {
    let ends = Ends::new(protocol, 2, 0, 2);
    let (route, mut producer) = (ends.route, ends.producer);
    let heir = route.clone();
    let taker = spawn(move || {
        Consumer::inherit(&heir).next_frame().expect(LOST_END);
    });
    assert!(producer.try_send());
    producer.relink(1);
    taker.join().unwrap();
}
