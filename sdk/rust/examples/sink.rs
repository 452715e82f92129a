//! Sink: adds up the numbers that come as {"n": …} in CBOR, and leaves the sum as the node's result.

use chronetix::{run, Error, Frame, Node, Result, Value, Worker};

struct Total(i64);

impl Node for Total {
    fn frame(&mut self, _: &Worker, frame: &Frame<'_>) -> Result<()> {
        self.0 += Value::decode(frame)?.get("n").as_i64().ok_or_else(|| Error::failed("no number"))?;
        Ok(())
    }

    fn stop(&mut self, _: &Worker) -> Result<Value> {
        Ok(self.0.into())
    }
}

fn main() -> std::process::ExitCode {
    run(Total(0))
}
