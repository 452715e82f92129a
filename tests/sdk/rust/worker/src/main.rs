//! A worker with a role for each thing that the tests look at; `params.role` names it. What a role sends and checks, the
//! Python plugins in tests/sdk/rust/plugins send and check in the same way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use chronetix::{
    Envelope, Error, Event, Frame, Kind, Message, Node, Produce, Reply, Result, SendOptions, Tick, Value, Wait, Worker,
};
use rustix::event::{poll, PollFd, PollFlags};

const BYTES: &str = "application/octet-stream";
const STAMP: i64 = 1_700_000_000_000_000_001;

#[derive(Default)]
struct Own {
    role: String,
    params: Value,
    number: u64,
    rounds: u64,
    frames: u64,
    bytes: u64,
    wrong: u64,
    redelivered: u64,
    ticks: u64,
    messages: u64,
    largest: u64,
    incarnation: u64,
    ledger: Option<File>,
    answers: String,
}

// ---- frames whose content tells which they are ----------------------------------------------------------------------

fn byte_at(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(131).wrapping_add(at as u64 * 7).wrapping_add(at as u64 >> 8)) as u8
}

fn is_whole(data: &[u8], number: u64) -> bool {
    data.iter().enumerate().all(|(at, byte)| *byte == byte_at(number, at))
}

fn number_of(data: &[u8]) -> u64 {
    data.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn pause(micros: u64) {
    if micros > 0 {
        std::thread::sleep(Duration::from_micros(micros));
    }
}

impl Own {
    fn param(&self, name: &str, otherwise: u64) -> u64 {
        self.params.get(name).as_u64().unwrap_or(otherwise)
    }

    fn size_of(&self, number: u64) -> usize {
        let sizes = self.params.get("sizes").items();
        sizes[(number % sizes.len() as u64) as usize].as_u64().unwrap_or(0) as usize
    }

    fn send_sized(&mut self, worker: &Worker) -> Result<Produce> {
        let size = self.size_of(self.number);
        let mut loan = worker.reserve(size, &SendOptions::new())?;
        for (at, byte) in loan.iter_mut().enumerate() {
            *byte = byte_at(self.number, at);
        }
        self.number += 1;
        loan.commit(size, &SendOptions::new())?;
        Ok(Produce::More)
    }

    fn check(&mut self, frame: &Frame<'_>) -> Result<()> {
        let number = self.frames;
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.redelivered += u64::from(frame.is_redelivered());
        self.largest = self.largest.max(frame.len() as u64);
        self.wrong += u64::from(!is_whole(frame, number) || frame.len() != self.size_of(number));
        pause(self.param("pause_us", 0));
        Ok(())
    }

    fn write_ledger(&mut self, frame: &Frame<'_>) -> Result<()> {
        let marked = u8::from(frame.is_redelivered());
        let line = format!("{} {} {} {marked}\n", self.incarnation, frame.route(), number_of(frame));
        let ledger = self.ledger.as_mut().ok_or_else(|| Error::failed("there is no ledger"))?;
        Ok(ledger.write_all(line.as_bytes())?)
    }

    fn ask(&mut self, worker: &Worker, frame: &Frame<'_>) -> Result<()> {
        let envelope = Envelope::new("double").content_type(BYTES);
        let request = worker.request(&envelope, frame, Duration::from_secs(5))?;
        let reply = worker.await_reply(request)?;
        let doubled = reply.result.map_err(|why| Error::failed(format!("no answer: {}", why.name())))?;
        self.frames += 1;
        self.wrong += u64::from(number_of(&doubled) != 2 * number_of(frame));
        Ok(())
    }
}

impl Node for Own {
    fn init(&mut self, worker: &Worker) -> Result<()> {
        self.params = worker.params();
        self.role = self.params.get("role").as_str().unwrap_or("").to_owned();
        self.incarnation = worker.config().get("incarnation").as_u64().unwrap_or(0);
        if let Some(path) = self.params.get("ledger").as_str() {
            self.ledger = Some(File::options().append(true).create(true).open(path)?);
        }
        if self.role == "refuses" {
            return Err(Error::failed("not today"));
        }
        Ok(())
    }

    fn start(&mut self, worker: &Worker) -> Result<()> {
        self.number = worker.resume_after();
        println!("role {}", self.role);
        if let Some(topic) = self.params.get("subscribes").as_str() {
            worker.subscribe(topic)?;
        }
        if self.role == "asks_nobody" {
            worker.request(&Envelope::new("nobody-listens"), b"1", Duration::from_secs(5))?;
        }
        worker.log("info", &format!("started as {}", self.role))
    }

    fn produce(&mut self, worker: &Worker) -> Result<Produce> {
        if !matches!(self.role.as_str(), "sized" | "items" | "paced") {
            return Ok(Produce::Nothing);
        }
        if self.role == "paced" {
            pause(200);
        }
        if self.number >= self.param("count", u64::MAX) {
            return Ok(Produce::Done);
        }
        if self.role == "sized" {
            return self.send_sized(worker);
        }
        self.number += 1;
        worker.send(&self.number.to_le_bytes())?;
        if self.params.get("grows").as_bool() == Some(true) && self.number.is_multiple_of(100) {
            // A large loan that is given back, so that the arena grows and shrinks.
            drop(worker.reserve(4 << 20, &SendOptions::new())?);
        }
        Ok(Produce::More)
    }

    fn frame(&mut self, worker: &Worker, frame: &Frame<'_>) -> Result<()> {
        self.rounds += 1;
        let at = self.param("at", 10);
        match self.role.as_str() {
            "fails" if self.rounds == at => Err(Error::failed(format!("frame {at} is one too many"))),
            "crashes" if self.rounds == at && self.incarnation == 0 => std::process::abort(),
            "forward" | "fails" | "crashes" => worker.send(frame),
            "prints" => {
                // More than a pipe holds, by lines.
                for line in 0..2400 {
                    println!("{:0100} {:025}", number_of(frame), line);
                }
                worker.send(frame)
            }
            "in_place" => {
                let mut loan = worker.reserve(frame.len() + 100, &SendOptions::new())?;
                loan[..frame.len()].copy_from_slice(frame);
                loan.commit(frame.len(), &SendOptions::new())
            }
            "check" => self.check(frame),
            "ledger" => self.write_ledger(frame),
            "noted" => {
                let meta = Value::map().with("camera", 3).encode();
                worker.send_with(frame, &SendOptions::new().meta(&meta).stamp_ns(STAMP))
            }
            "counts" => {
                self.frames += 1;
                self.number = number_of(frame);
                pause(self.param("pause_us", 0));
                Ok(())
            }
            "reads_notes" => {
                self.frames += 1;
                let right = Value::decode(frame.meta())?.get("camera").as_i64() == Some(3) && frame.stamp_ns() == STAMP;
                self.wrong += u64::from(!right);
                Ok(())
            }
            "asks" => self.ask(worker, frame),
            role => Err(Error::failed(format!("no role {role}"))),
        }
    }

    fn tick(&mut self, worker: &Worker, tick: &Tick) -> Result<()> {
        self.ticks += 1;
        if self.role == "ticks" {
            worker.publish(&Envelope::new("beat").content_type(BYTES), &tick.sequence.to_le_bytes())?;
        }
        Ok(())
    }

    fn message(&mut self, worker: &Worker, message: &Message) -> Result<()> {
        self.messages += 1;
        if message.corr_id().is_some() {
            return worker.reply(message, &(2 * number_of(&message.payload)).to_le_bytes(), BYTES);
        }
        if self.messages == 3 {
            worker.log("info", "heard 3")?;
        }
        Ok(())
    }

    fn reply(&mut self, worker: &Worker, reply: &Reply) -> Result<()> {
        self.answers = reply.result.as_ref().map_or_else(|why| why.name().to_owned(), |_| String::new());
        worker.log("info", "no answer")
    }

    fn stop(&mut self, _: &Worker) -> Result<Value> {
        let result = Value::map().with("number", self.number).with("frames", self.frames).with("bytes", self.bytes);
        let result = result.with("wrong", self.wrong).with("redelivered", self.redelivered).with("ticks", self.ticks);
        let result = result.with("messages", self.messages).with("largest", self.largest);
        Ok(result.with("answers", self.answers.as_str()))
    }
}

// ---- loops of their own ---------------------------------------------------------------------------------------------

/// As role forward, with poll and without callbacks. A frame that finds no credit is held until there is room again;
/// those that come meanwhile wait in a queue.
fn own_loop(worker: &Worker) -> Result<()> {
    let mut queue: VecDeque<Frame<'_>> = VecDeque::new();
    let mut ended = false;
    loop {
        if ended && queue.is_empty() {
            return worker.finish(Value::Null);
        }
        if !ended {
            match worker.try_next()? {
                Event::Nothing => {
                    let _ = poll(&mut [PollFd::new(worker, PollFlags::IN)], None);
                }
                Event::Frame(frame) => queue.push_back(frame),
                Event::End => ended = true,
                _ => {}
            }
        }
        while let Some(frame) = queue.front() {
            let wait = if ended { Wait::Forever } else { Wait::No };
            match worker.send_with(frame, &SendOptions::new().from(frame).wait(wait)) {
                Err(error) if error.kind() == Kind::WouldBlock => break,
                done => done?,
            }
            queue.pop_front();
        }
    }
}

/// Frames are given back later, and not in their order.
fn late(worker: &Worker) -> Result<()> {
    let mut kept: Vec<Frame<'_>> = Vec::new();
    loop {
        match worker.next()? {
            Event::Frame(frame) => {
                worker.send_with(&frame, &SendOptions::new().from(&frame))?;
                kept.push(frame);
                if kept.len() == 8 {
                    while !kept.is_empty() {
                        let at = 3 % kept.len();
                        drop(kept.swap_remove(at));
                    }
                }
            }
            Event::End => {
                kept.clear();
                return worker.finish(Value::Null);
            }
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let worker = match Worker::inherit() {
        Ok(worker) => worker,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(if error.is_daemon_gone() { 70 } else { 1 });
        }
    };
    let done = match worker.params().get("role").as_str() {
        Some("own_loop") => own_loop(&worker),
        Some("late") => late(&worker),
        _ => return worker.run(Own::default()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            worker.fault("frame", &error);
            ExitCode::from(if error.is_daemon_gone() { 70 } else { 1 })
        }
    }
}
