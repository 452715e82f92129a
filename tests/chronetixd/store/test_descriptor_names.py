"""What the supervisor keeps of a flow: names that say all, a store that follows, and whatever may come out of it."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix import shm
from chronetixd.core.worker import Exit
from chronetixd.dataplane.recovered import RecoveredMemory
from chronetixd.dataplane.wiring import DataRoute, FlowWiring
from chronetixd.store.descriptor_keys import HIGHEST, Key
from chronetixd.store.descriptor_names import KeptDescriptors, Stored, name_of
from chronetixd.systemd.fdstore import DescriptorStore
from chronetixd.systemd.notify import ServiceManager

KINDS = ("ring", "credit", "segment", "pidfd")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)
NUMBERS = st.integers(0, HIGHEST)
KEYS = st.builds(Key, TEXTS, st.sampled_from(KINDS), NUMBERS, st.one_of(st.just(""), TEXTS), NUMBERS, NUMBERS)
NAMES = st.from_regex(r"f/(a|b)/(r|)/[crspx]/(-|)(0|00|1)/[0-9]*/(0|9{17,21})", fullmatch=True)


class Heard:
    """A supervisor's socket, and what it was told."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)

    def all(self) -> list[str]:
        """Each message so far: + or -, and a name. What came with it is closed."""
        told = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.sock, 4096, 10)
            except BlockingIOError:
                return told
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            told.append(("+" if "FDSTORE" in fields else "-") + fields["FDNAME"])
            assert len(descriptors) == ("FDSTORE" in fields)
            for fd in descriptors:
                os.close(fd)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    with tempfile.TemporaryDirectory() as folder:
        listening = Heard(Path(folder) / "notify")
        monkeypatch.setenv("NOTIFY_SOCKET", str(Path(folder) / "notify"))
        yield listening
        listening.sock.close()


class Later:
    """Calls that are due whenever the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        self.due.append(call)

    def pass_by(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def descriptor() -> Iterator[int]:
    fd = os.memfd_create("anything")
    yield fd
    os.close(fd)


class TestNames:
    @given(flow=TEXTS, key=KEYS)
    def test_a_name_is_one_for_the_store_and_says_what_it_was_made_of(self, flow: str, key: Key) -> None:
        name = name_of(flow, key)
        assert len(name) <= 255
        assert all("!" <= character <= "~" and character != ":" for character in name)
        fd = os.memfd_create("kept")
        stored = Stored({name: [fd]}, DescriptorStore(ServiceManager(lambda *_: None)))
        assert stored.has(flow)
        assert stored.take(flow, [key.node, "another"], [key.route] if key.route else []) == {key: fd}
        os.close(fd)

    @given(
        name=st.one_of(
            st.text(), st.from_regex(r"f/(a|b)/(r|)/[crspx]/(-|)(0|00|1)/[0-9]*/(0|9{17,21})", fullmatch=True)
        )
    )
    def test_any_other_name_is_nobodys_or_means_something_of_the_flow(self, name: str) -> None:
        fd = os.memfd_create("kept")
        stored = Stored({name: [fd]}, DescriptorStore(ServiceManager(lambda *_: None)))
        for key, taken in stored.take("f", ["a"], ["r"]).items():
            assert name_of("f", key) == name
            os.close(taken)
        stored.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    @pytest.mark.parametrize("number", [-1, HIGHEST + 1])
    def test_a_key_that_the_next_daemon_would_not_read_gets_no_name(self, number: int) -> None:
        for field in ("incarnation", "number", "resume"):
            with pytest.raises(ValueError, match="has a number that is not in 0 to"):
                name_of("f", Key("a", "credit", 0, "r")._replace(**{field: number}))

    def test_what_is_no_name_of_ours_is_told_and_stays_with_the_supervisor(
        self, heard: Heard, later: Later, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = DescriptorStore(ServiceManager(later), limit=10)
        over = name_of("over", Key("a", "ring", 0, "r"))
        stored = Stored({name: [os.memfd_create("kept")] for name in ("of-another-program", over)}, store)
        stored.close()
        assert heard.all() == [f"-{over}"]
        assert store.room == 9
        told = capsys.readouterr().out
        assert all(name in told for name in ("of-another-program", over))

    def test_two_descriptors_of_one_name_are_none(self, heard: Heard, later: Later) -> None:
        name = name_of("f", Key("a", "ring", 0, "r"))
        stored = Stored({name: [os.memfd_create("1"), os.memfd_create("2")]}, DescriptorStore(ServiceManager(later)))
        assert stored.take("f", ["a"], ["r"]) == {}
        stored.close()
        assert heard.all() == [f"-{name}"]


class TestAFlowsPart:
    def test_the_store_follows_the_new_before_the_old_goes(self, heard: Heard, later: Later, descriptor: int) -> None:
        keeping = KeptDescriptors(DescriptorStore(ServiceManager(later)), "f")
        old, new = Key("b", "credit", 0, "r"), Key("b", "credit", 1, "r")
        keeping.follow({old: descriptor})
        keeping.follow({old: descriptor})
        keeping.follow({new: descriptor})
        keeping.close()
        names = [name_of("f", key) for key in (old, new)]
        assert heard.all() == [f"+{names[0]}", f"+{names[1]}", f"-{names[0]}", f"-{names[1]}"]

    def test_what_has_come_back_is_kept_on_if_it_is_the_same(self, heard: Heard, later: Later, descriptor: int) -> None:
        same, other = Key("a", "segment", 0), Key("a", "segment", 0, "", 1)
        foreign = os.memfd_create("foreign")
        keeping = KeptDescriptors(DescriptorStore(ServiceManager(later)), "f", {same: descriptor, other: foreign})
        os.close(foreign)
        keeping.follow({same: descriptor, other: descriptor})
        name = name_of("f", other)
        assert heard.all() == [f"-{name}", f"+{name}"]

    def test_without_a_supervisor_nothing_is_kept_and_nothing_fails(
        self, monkeypatch: pytest.MonkeyPatch, later: Later, descriptor: int
    ) -> None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        supervisor = ServiceManager(later)
        store = DescriptorStore(supervisor)
        keeping = KeptDescriptors(store, "f")
        keeping.follow({Key("a", "segment", 0): descriptor})
        keeping.close()
        assert (supervisor.waiting, later.due) == (0, [])


class TestASupervisorThatIsBusy:
    def test_it_is_told_everything_in_order_once_it_reads(self, heard: Heard, later: Later, descriptor: int) -> None:
        supervisor = ServiceManager(later)
        store = DescriptorStore(supervisor)
        wanted = [f"name-{number}" for number in range(2000)]
        told: list[str] = []
        for name in wanted:
            assert store.push(name, descriptor)
        store.forget("name-0")
        assert supervisor.waiting, "more than its socket takes"
        while supervisor.waiting:
            told += heard.all()
            later.pass_by()
        told += heard.all()
        assert told == [*(f"+{name}" for name in wanted), "-name-0"]

    def test_at_the_end_what_it_was_not_told_is_given_up(self, heard: Heard, later: Later, descriptor: int) -> None:
        supervisor = ServiceManager(later)
        store = DescriptorStore(supervisor)
        for number in range(2000):
            store.push(f"name-{number}", descriptor)
        supervisor.close()
        later.pass_by()
        assert not store.push("name", descriptor)
        heard.all()


class TestWhatComesOut:
    def test_what_is_not_what_its_name_says_is_closed(self) -> None:
        ring = shm.Consumer("r", credits=4, epoch=3)
        found = {
            Key("a", "ring", 0, "r", 3): os.dup(ring.fd),
            Key("b", "credit", 0, "r", 2): os.dup(ring.fd),
            Key("b", "credit", 0, "r", 3): os.dup(ring.fd),
            Key("a", "segment", 0): os.open("/dev/null", os.O_RDONLY),
            Key("a", "pidfd", 0): os.memfd_create("no process"),
        }
        kept = RecoveredMemory(found)
        assert list(kept) == [Key("b", "credit", 0, "r", 3)]
        kept.close()
        ring.close()

    @given(data=st.data())
    def test_of_several_consumers_the_last_counts_that_had_inherited_everything(self, data: st.DataObject) -> None:
        """Each has copied all of its predecessor's stamps, or died while it did."""
        length = 16
        said, last = [0] * length, 0
        lives = []
        for incarnation in range(data.draw(st.integers(1, 5))):
            copied = data.draw(st.integers(0, length)) if incarnation else length
            own = said[:copied] + [0] * (length - copied)
            if own == said:
                own = [mine + data.draw(st.integers(0, 3)) * 16 for mine in own]
                said, last = own, incarnation
            lives.append(own)
        kept = RecoveredMemory(
            {Key("b", "credit", incarnation, "r"): credit(own) for incarnation, own in enumerate(lives)}
        )
        chosen = kept.credit("r", 0)
        assert chosen is not None
        assert chosen[0].incarnation == last or credit_words(chosen[1]) == said
        os.close(chosen[1])
        kept.close()

    @given(source=st.integers(0, 3), sink=st.integers(0, 3), later=st.integers(0, 2))
    def test_a_daemon_keeps_it_under_the_names_that_it_has(self, source: int, sink: int, later: int) -> None:
        """Both nodes are dead; the sink may have died once more since it made its credits."""
        arena = shm.Arena(1 << 20, first=1 << 16, on_grow=lambda *_: None)
        ring, credits = shm.Producer(arena, "r", credits=4), shm.Consumer("r", credits=4)
        found = {
            Key("a", "ring", source, "r"): os.dup(ring.fd),
            Key("b", "credit", sink, "r"): os.dup(credits.fd),
            **{Key("a", "segment", source, "", index): os.dup(fd) for index, fd, _ in arena.segments},
        }
        wiring = FlowWiring(("a", "b"), [DataRoute("r", "a", "b")])
        wiring.take_over({}, {"a": source, "b": sink + later}, set(), RecoveredMemory(found))
        assert wiring.memories() == found
        wiring.close()
        for end in (ring, credits, arena):
            end.close()

    def test_of_an_exit_that_was_not_kept_nothing_is_known(self) -> None:
        kept = RecoveredMemory({})
        assert kept.exit("a", 0, 1) == Exit()
        assert kept.memory("a") is None
        kept.close()


def credit(stamps: list[int]) -> int:
    """A CREDIT of 8 credits, whose slots say this."""
    made = shm.Consumer("r", credits=8)
    words = os.pread(made.fd, 1 << 20, 0)
    made.close()
    fd = os.memfd_create("credit", os.MFD_ALLOW_SEALING)
    os.write(fd, words[:5376] + b"".join(stamp.to_bytes(8, "little") for stamp in stamps))
    os.posix_fallocate(fd, 0, len(words))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10 | fcntl.F_SEAL_SEAL)
    return fd


def credit_words(fd: int) -> list[int]:
    return [int.from_bytes(os.pread(fd, 8, 5376 + 8 * slot), "little") for slot in range(16)]
