"""The planned upgrade: the daemon executes its next image in its own process, and that image resumes where this one
stopped.

Rules:

* A snapshot (``snapshot``) in a sealed memfd is handed over, with the numbers of descriptors that outlive the exec
  (``Bag``). Each class with state packs itself into a struct, and unpacks itself from one.
* Nothing is executed before the new image, as a child, has rebuilt everything from a real snapshot (``rehearsal``).
* Before the new image has rebuilt everything it reads no socket, reaps and kills no process, and writes nothing
  (``arrival``). If it cannot rebuild everything, it executes the old image again, which takes over from the same
  snapshot (``exec_handoff``).
"""
