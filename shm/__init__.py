"""The data plane: lossless zero-copy rings between processes, with credits, in sealed shared memory.

A route is one RING (written by its producer) and one CREDIT (written by its consumer); payloads lie in the producer's
ARENA. Every memory has one writer, and every reader checks what a peer wrote. `SPEC.md` describes the layout and the
rules; the headers under `include/chronetix` are the same in C11 for workers in other languages.

    bell, arena = Doorbell(), Arena()
    producer = Producer(arena, "numbers")            # the sending process
    consumer = Consumer("numbers")                   # the receiving process; descriptors travel over a Unix socket
    near, far = line()                               # the process that links the two makes a line between them
    producer.link(consumer.fd, near, bell)
    Outlet([producer], bell).send(b"hello")
    frame = Inlet([consumer], consumer_bell).take()
"""

from chronetix.shm._native import (
    ABI_VERSION,
    Arena,
    Batch,
    Consumer,
    Doorbell,
    Frame,
    FrameTooLarge,
    Inlet,
    Loan,
    Outlet,
    PeerFault,
    Producer,
    RouteClosed,
    RouteView,
    Step,
    WouldBlock,
    check,
    line,
    missing_features,
    remains,
    run_awaited,
    run_frames,
    run_items,
)

__all__ = [
    "ABI_VERSION",
    "Arena",
    "Batch",
    "Consumer",
    "Doorbell",
    "Frame",
    "FrameTooLarge",
    "Inlet",
    "Loan",
    "Outlet",
    "PeerFault",
    "Producer",
    "RouteClosed",
    "RouteView",
    "Step",
    "WouldBlock",
    "check",
    "line",
    "missing_features",
    "remains",
    "run_awaited",
    "run_frames",
    "run_items",
]
