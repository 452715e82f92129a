//! What the conformance kit asks of a program: by its ports a sink, a map that returns each frame, or a source of the
//! numbers from 1.

use chronetix::{run, Frame, Node, Produce, Result, SendOptions, Worker};

#[derive(Default)]
struct Tested {
    number: u64,
    sends: bool,
}

impl Node for Tested {
    fn start(&mut self, worker: &Worker) -> Result<()> {
        self.number = worker.resume_after();
        self.sends = !worker.outputs().is_empty();
        Ok(())
    }

    fn produce(&mut self, worker: &Worker) -> Result<Produce> {
        if !self.sends || !worker.is_source() {
            return Ok(Produce::Nothing);
        }
        let next = (self.number + 1).to_le_bytes();
        let size = worker.params().get("size").as_u64().unwrap_or(8) as usize;
        let mut loan = worker.reserve(size, &SendOptions::new())?;
        for part in loan.chunks_mut(next.len()) {
            part.copy_from_slice(&next[..part.len()]);
        }
        loan.commit(size, &SendOptions::new())?;
        self.number += 1;
        Ok(Produce::More)
    }

    fn frame(&mut self, worker: &Worker, frame: &Frame<'_>) -> Result<()> {
        if !self.sends {
            return Ok(());
        }
        worker.send_with(frame, &SendOptions::new().meta(frame.meta()).stamp_ns(frame.stamp_ns()))
    }
}

fn main() -> std::process::ExitCode {
    run(Tested::default())
}
