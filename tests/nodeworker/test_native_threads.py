"""How many threads native libraries of workers have: one, or what the user says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from chronetix.nodeworker.process.link import ControlLink
from chronetix.protocol.messages import LauncherReady, Spawn, Spawned, SpawnFailed

ARROW = "JE_ARROW_MALLOC_CONF"
NAMES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", ARROW)

PLUGIN = """
import os
import numpy
from chronetix.nodeworker.process.native_threads import loaded_openblas

def threads(ctx):
    yield from ()
    product = numpy.ones((300, 300)) @ numpy.ones((300, 300))
    return {
        "threads": loaded_openblas("get_num_threads")(),
        "right": bool((product == 300).all()),
        "set": {name: os.environ[name] for name in NAMES if name in os.environ},
    }
"""


@pytest.fixture
def launched(tmp_path, daemon, configure, plugin):
    """What a plugin in a warm fork of a launcher with ``env`` finds; the node has ``of_node`` besides."""

    def run(env, of_node, argv=(), spare=False):
        ours, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if name not in NAMES}
        command = [sys.executable, "-m", "chronetix.nodeworker.process.launcher"]
        with socket.socket(fileno=ours.detach()) as sock, theirs:
            fds = [theirs.fileno()]
            process = subprocess.Popen(command, pass_fds=fds, env={**kept, **env, "CHRONETIX_FD": str(fds[0])})
            theirs.close()
            link = ControlLink(sock, LauncherReady | Spawned | SpawnFailed)
            assert isinstance(link.receive()[0], LauncherReady)
            control, remote = socket.socketpair()
            with remote, open(tmp_path / "out", "wb") as out:
                spawn = Spawn(id=1, name="n", argv=list(argv), env=of_node)
                link.send(spawn, [remote.fileno(), out.fileno(), out.fileno()])
                answer, (pidfd,) = link.receive()
            assert isinstance(answer, Spawned)
            if argv:
                found = None
            else:
                found = daemon.adopt(configure("n", plugin(f"NAMES = {NAMES}{PLUGIN}") + ":threads"), control, 0, int)
                daemon.wire()
                daemon.begin()
                found = daemon.finish()["n"]
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | 0x40000000)
            os.close(pidfd)
            control.close()
        assert process.wait(60) == 0
        return found if found is not None else (tmp_path / "out").read_text()

    return run


@pytest.mark.parametrize(
    ("of_daemon", "of_node", "threads", "left"),
    [
        ({}, {}, 1, {"OPENBLAS_NUM_THREADS": "1"}),
        ({"OPENBLAS_NUM_THREADS": "2"}, {}, 2, {"OPENBLAS_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "2"}, {}, 2, {"OMP_NUM_THREADS": "2"}),
        ({}, {"GOTO_NUM_THREADS": "2"}, 2, {"GOTO_NUM_THREADS": "2"}),
        ({}, {"OMP_NUM_THREADS": "2"}, 2, {"OMP_NUM_THREADS": "2"}),
        ({"OPENBLAS_NUM_THREADS": "2"}, {"OPENBLAS_NUM_THREADS": "1"}, 1, {"OPENBLAS_NUM_THREADS": "1"}),
        ({ARROW: "narenas:2"}, {}, 1, {"OPENBLAS_NUM_THREADS": "1", ARROW: "narenas:2"}),
    ],
)
def test_a_worker_has_one_blas_thread_or_what_daemon_or_node_say(launched, of_daemon, of_node, threads, left):
    assert launched(of_daemon, of_node) == {"threads": threads, "right": True, "set": left}


def test_a_program_gets_the_users_settings_too(launched):
    show = ["/bin/sh", "-c", 'echo "$OPENBLAS_NUM_THREADS.$OMP_NUM_THREADS.$JE_ARROW_MALLOC_CONF"']
    assert launched({}, {}, show) == "1..\n"
    assert launched({"JE_ARROW_MALLOC_CONF": "narenas:2"}, {"OMP_NUM_THREADS": "4"}, show) == ".4.narenas:2\n"
