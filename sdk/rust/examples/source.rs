//! Source: the numbers below its parameter `count`, each a map {"n": …} in CBOR.

use chronetix::{run, Node, Produce, Result, Value, Worker};

struct Numbers {
    next: i64,
    count: i64,
}

impl Node for Numbers {
    /// After a restart: go on behind the last item that has left on all outputs.
    fn start(&mut self, worker: &Worker) -> Result<()> {
        self.next = worker.resume_after() as i64;
        self.count = worker.params().get("count").as_i64().unwrap_or(0);
        Ok(())
    }

    fn produce(&mut self, worker: &Worker) -> Result<Produce> {
        if self.next >= self.count {
            return Ok(Produce::Done);
        }
        worker.send(&Value::map().with("n", self.next).encode())?;
        self.next += 1;
        Ok(Produce::More)
    }
}

fn main() -> std::process::ExitCode {
    run(Numbers { next: 0, count: 0 })
}
