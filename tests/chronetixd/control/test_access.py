"""Who may do what, with users that the kernel vouches for: needs root, to become them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError
from chronetixd.control.verbs import VERBS
from chronetixd.core.access import Right
from chronetixd.core.quota import ADMIN_RESERVE
from chronetixd.linux.peer import look_up_rules, peer_of, program_of

READER, OPERATOR, STRANGER, MEMBER = 7001, 7002, 7003, 7004
GROUP, OTHER_GROUP = 7050, 7051
As = Callable[..., Any]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="chronetix-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def connect_as() -> Iterator[As]:
    """Connect to a daemon as another user. The kernel keeps who it was that called connect, so a child does that and
    hands the socket over."""
    with ExitStack() as opened:

        def connect(daemon: Any, uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> Any:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                child = os.fork()
                if child == 0:
                    os._exit(_connect(theirs, str(daemon.socket), uid, uid if gid is None else gid, groups))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                if code:
                    raise OSError(code, os.strerror(code))
                _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            return opened.enter_context(daemon.peer(socket.socket(fileno=fd)))

        yield connect


def _connect(theirs: socket.socket, path: str, uid: int, gid: int, groups: tuple[int, ...]) -> int:
    """In the child: become that user, connect, hand over. The exit code is the errno."""
    try:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            socket.send_fds(theirs, [b"x"], [sock.fileno()])
    except OSError as reason:
        return reason.errno or 1
    return 0


def may(client: Any, verb: str) -> bool:
    """Whether the daemon lets the call begin; what it then says of its arguments does not matter."""
    args = {"follow": False} if verb in ("logs", "events", "audit") else {}
    ended = client.end(client.begin(verb, **args))
    return not (isinstance(ended, wire.Failure) and ended.name == "not-allowed")


@needs_root
class TestThreeUsersAndEveryVerb:
    @pytest.fixture
    def guarded(self, start: Any) -> Any:
        return start(CHRONETIX_ALLOW_READ=str(READER), CHRONETIX_ALLOW_OPERATE=str(OPERATOR))

    @pytest.mark.parametrize("verb", VERBS)
    def test_each_may_what_his_right_contains(self, verb: str, guarded: Any, connect_as: As) -> None:
        reader, operator = (connect_as(guarded, uid).greet() for uid in (READER, OPERATOR))
        with guarded.connect() as root:
            assert [may(client, verb) for client in (reader, operator, root)] == [
                right >= VERBS[verb].right for right in (Right.READ, Right.OPERATE, Right.ADMIN)
            ]

    def test_a_stranger_is_sent_away_before_he_says_anything(self, guarded: Any, connect_as: As) -> None:
        stranger = connect_as(guarded, STRANGER)
        failure = stranger.receive()
        assert (failure.name, failure.details["uid"], failure.details["right"]) == ("not-allowed", STRANGER, "read")
        assert "allow_read" in failure.hint
        assert stranger.receive() is None

    def test_a_refusal_says_which_right_it_takes_and_how_to_get_it(self, guarded: Any, connect_as: As) -> None:
        failure = connect_as(guarded, READER).greet().refused("submit", flow={})
        assert "the right to operate" in failure.message
        assert "allow_operate" in failure.hint

    def test_what_was_refused_has_not_begun(self, guarded: Any, connect_as: As, scripted: Any) -> None:
        connect_as(guarded, READER).greet().refused("submit", flow=scripted("good"), name="f")
        with guarded.connect() as root:
            assert root.call("list") == {"flows": []}

    def test_an_operator_has_no_nodes_of_other_users(self, guarded: Any, connect_as: As, scripted: Any) -> None:
        flow = scripted("good")
        other = {**flow, "manifests": [{**each, "user": "nobody"} for each in flow["manifests"]]}
        operator = connect_as(guarded, OPERATOR).greet()
        failure = operator.refused("submit", flow=other, name="f")
        assert failure.name == "not-allowed"
        assert f"user {OPERATOR} may not run node n0 as user nobody: that takes the right to admin" in failure.message
        assert operator.call("list") == {"flows": []}
        operator.call("submit", flow=flow, name="f", wait="running")
        assert operator.refused("apply", flow=other, name="f").name == "not-allowed"
        with guarded.connect() as root:
            assert "nobody" in str(root.call("diff", flow=other, name="f"))

    def test_the_audit_log_tells_of_it(self, guarded: Any, connect_as: As) -> None:
        connect_as(guarded, STRANGER).receive()
        connect_as(guarded, READER).greet().refused("stop", flow="f")
        connect_as(guarded, OPERATOR).greet().refused("stop", flow="f")
        with guarded.connect() as root:
            number = root.begin("audit")
            told = []
            while isinstance(item := root.receive(), wire.Item):
                told.append(tuple(item.value[key] for key in ("uid", "verb", "outcome")))
            assert isinstance(item, wire.Result), number
        assert told == [
            (STRANGER, "connect", "not-allowed"),
            (READER, "stop", "not-allowed"),
            (OPERATOR, "stop", "begun"),
            (OPERATOR, "stop", "flow-not-found"),
            (0, "audit", "begun"),
        ]


@needs_root
class TestGroups:
    def test_members_of_the_socket_s_group_operate(self, start: Any, connect_as: As) -> None:
        daemon = start("--socket-group", str(GROUP))
        found = daemon.socket.stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (GROUP, 0o660)
        member = connect_as(daemon, MEMBER, groups=(OTHER_GROUP, GROUP)).greet()
        assert may(member, "stop")
        assert not may(member, "audit")
        with pytest.raises(PermissionError):
            connect_as(daemon, STRANGER, groups=(OTHER_GROUP,))

    def test_a_supplementary_group_counts_however_many_there_are(self, start: Any, connect_as: As) -> None:
        daemon = start(CHRONETIX_ALLOW_READ=f"@{GROUP}")
        groups = (*range(20_000, 22_000), GROUP)
        assert connect_as(daemon, MEMBER, groups=groups).greet().call("list") == {"flows": []}

    def test_without_a_group_of_its_own_the_socket_s_group_may_nothing(self, start: Any, connect_as: As) -> None:
        daemon = start()
        gid = daemon.socket.stat().st_gid
        assert connect_as(daemon, MEMBER, gid=gid).receive().name == "not-allowed"

    def test_an_allow_operate_of_its_own_stands_instead(self, start: Any, connect_as: As) -> None:
        daemon = start("--socket-group", str(GROUP), CHRONETIX_ALLOW_OPERATE=str(OPERATOR))
        assert connect_as(daemon, MEMBER, groups=(GROUP,)).receive().name == "not-allowed"
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o666


@needs_root
class TestCaps:
    def test_an_admin_gets_in_when_all_places_are_taken(self, start: Any, connect_as: As) -> None:
        daemon = start(CHRONETIX_MAX_CLIENTS="2", CHRONETIX_ALLOW_READ="*")
        taken = [connect_as(daemon, READER).greet(), connect_as(daemon, OPERATOR).greet()]
        assert connect_as(daemon, STRANGER).receive().name == "quota-exceeded"
        with ExitStack() as admins:
            for _ in range(ADMIN_RESERVE):
                assert admins.enter_context(daemon.connect()).call("list") == {"flows": []}
        assert [client.call("list") for client in taken] == [{"flows": []}] * 2

    def test_one_user_s_connections_leave_room_for_others(self, start: Any, connect_as: As) -> None:
        daemon = start(CHRONETIX_MAX_CLIENTS_PER_USER="1", CHRONETIX_ALLOW_READ="*")
        connect_as(daemon, READER).greet()
        refused = connect_as(daemon, READER).receive()
        assert (refused.name, refused.details["limit"]) == ("quota-exceeded", 1)
        connect_as(daemon, OPERATOR).greet()

    def test_calls_beyond_the_rate_are_refused_and_the_connection_goes_on(self, start: Any, connect_as: As) -> None:
        daemon = start(CHRONETIX_CALL_RATE="0.001", CHRONETIX_ALLOW_READ="*")
        client = connect_as(daemon, READER).greet()
        assert client.call("list") == {"flows": []}
        assert client.refused("list").name == "quota-exceeded"
        assert connect_as(daemon, OPERATOR).greet().call("list") == {"flows": []}

    def test_connections_beyond_the_rate_are_refused(self, start: Any, connect_as: As) -> None:
        daemon = start(CHRONETIX_CONNECT_RATE="0.001", CHRONETIX_ALLOW_READ="*")
        connect_as(daemon, READER).greet()
        assert connect_as(daemon, READER).receive().name == "quota-exceeded"


class TestPeers:
    def test_the_kernel_tells_who_is_at_the_other_end(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer = peer_of(ours)
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
        assert peer.groups >= {os.getegid(), *os.getgroups()}
        assert peer.program == program_of(os.getpid()) != ""

    def test_a_process_that_has_gone_has_no_name(self) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert [program_of(pid) for pid in (child, 0, -1)] == ["", "", ""]


class TestNames:
    def rules(self, group: int | None = None, **allow: Any) -> Any:
        names = {f"allow_{right}": allow.get(right, None if right == "operate" else ()) for right in ALL}
        return look_up_rules(1, group, names)

    def test_users_and_groups_are_looked_up(self) -> None:
        rules = self.rules(read=("@root", "12"), admin=("root",))
        assert (dict(rules.users), dict(rules.groups)) == ({12: Right.READ, 0: Right.ADMIN}, {0: Right.READ})

    @pytest.mark.parametrize("name", ["no-such-user", "@no-such-group"])
    def test_a_name_that_nobody_has_is_an_error(self, name: str) -> None:
        with pytest.raises(ChronetixError, match=name.lstrip("@")) as raised:
            self.rules(read=(name,))
        assert raised.value.name == "config-invalid"

    def test_everyone_may_be_reader_or_operator_but_never_admin(self) -> None:
        assert self.rules(read=("*",)).everyone is Right.READ
        assert self.rules(operate=("*",)).everyone is Right.OPERATE
        with pytest.raises(ChronetixError, match="not everyone can be an admin"):
            self.rules(admin=("*",))

    def test_a_group_given_to_the_socket_operates_unless_told_otherwise(self) -> None:
        assert self.rules(group=50).groups == {50: Right.OPERATE}
        assert self.rules(group=50, operate=()).groups == {}


ALL = ("read", "operate", "admin")
