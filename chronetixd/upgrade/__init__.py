"""The planned upgrade: the daemon executes its next image in its own process, and that goes on where this one stopped.

Rules:

* What is handed over is a snapshot (``snapshot``) in a sealed memfd, with the numbers of descriptors that outlive the
  exec (``bag``). Each class with state packs itself into a struct, and unpacks itself from one.
* Nothing is executed before the new image, as a child, has rebuilt everything from a real snapshot (``rehearsal``).
* The new image reads no socket, reaps, kills and writes nothing before it has rebuilt everything (``arrival``). What
  keeps it from that makes it execute the old image again, which takes over from the same snapshot (``exec_handoff``).
"""
