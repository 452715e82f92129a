//! Map with a loop of its own: passes frames on, and may look at other descriptors beside the worker's.
//!
//! The rule: call `try_next` until it has nothing, then poll the worker's descriptor with everything else.

use std::process::ExitCode;

use chronetix::{Event, Result, SendOptions, Value, Worker};
use rustix::event::{poll, PollFd, PollFlags};

fn serve(worker: &Worker) -> Result<()> {
    loop {
        match worker.try_next()? {
            Event::Nothing => {
                let _ = poll(&mut [PollFd::new(worker, PollFlags::IN)], None); // and those of others
            }
            Event::Frame(frame) => {
                let sent = worker.send_with(&frame, &SendOptions::new().from(&frame));
                if sent.is_err() {
                    frame.abandon(); // a successor gets it again
                    return sent;
                }
            }
            Event::End => return worker.finish(Value::Null),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    let worker = match Worker::inherit() {
        Ok(worker) => worker,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match serve(&worker) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            worker.fault("frame", &error);
            ExitCode::FAILURE
        }
    }
}
