//! Map: squares the numbers that come as {"n": …} in CBOR.

use chronetix::{run, Frame, Node, Result, Value, Worker};

struct Square;

impl Node for Square {
    fn frame(&mut self, worker: &Worker, frame: &Frame<'_>) -> Result<()> {
        let n = Value::decode(frame)?.get("n").as_i64().unwrap_or(0);
        worker.send(&Value::map().with("n", n * n).encode())
    }
}

fn main() -> std::process::ExitCode {
    run(Square)
}
