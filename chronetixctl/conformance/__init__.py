"""The conformance kit: checks a worker in any language against ``protocol/PROTOCOL.md`` and ``shm/SPEC.md``.

The kit needs no daemon. For each check it starts the program anew, plays the daemon over the inherited control
socket and both peers over shared memory, and compares what comes with what the specifications say. Rules:

* it imports the protocol and the data plane, and neither the daemon nor the Python worker;
* everything that the program sends or writes is checked like a hostile peer's: no program can make the kit crash;
* every wait ends, by what was waited for, by the program's end or by a time limit;
* whatever happens, the program's process group is killed and every descriptor is closed at a check's end.
"""
