"""The rules of access and the quotas, without a socket and with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chronetixd.core.access import Peer, Right, Rules, strongest
from chronetixd.core.quota import (
    ADMIN_RESERVE,
    MAX_IDLE_USERS,
    MAX_PARTIAL,
    MAX_STREAMS,
    MAX_UNREAD,
    Bucket,
    Quota,
    QuotaGate,
)

SECOND = 1_000_000_000
RIGHTS = st.sampled_from(Right)
IDS = st.integers(0, 5)
RULES = st.builds(Rules, IDS, st.dictionaries(IDS, RIGHTS), st.dictionaries(IDS, RIGHTS), RIGHTS)


def peer(uid: int, *groups: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=next(iter(groups), uid), groups=frozenset(groups))


class TestRules:
    def test_root_and_the_owner_are_admins(self) -> None:
        rules = Rules(owner=7)
        assert [rules.right_of(peer(uid)) for uid in (0, 7, 8)] == [Right.ADMIN, Right.ADMIN, Right.NONE]

    def test_a_user_has_the_best_of_what_his_name_and_his_groups_give(self) -> None:
        rules = Rules(7, users={8: Right.READ}, groups={50: Right.OPERATE, 51: Right.READ})
        assert rules.right_of(peer(8)) is Right.READ
        assert rules.right_of(peer(8, 51, 50)) is Right.OPERATE
        assert rules.right_of(peer(9, 51)) is Right.READ

    def test_everyone_means_everyone(self) -> None:
        assert Rules(7, everyone=Right.READ).right_of(peer(12345)) is Right.READ

    def test_who_is_named_twice_has_the_higher_right(self) -> None:
        assert strongest([(1, Right.OPERATE), (1, Right.READ), (2, Right.READ)]) == {1: Right.OPERATE, 2: Right.READ}

    def test_the_socket_is_opened_to_all_only_where_others_than_its_group_have_rights(self) -> None:
        assert not Rules(7).reach_beyond(50)
        assert not Rules(7, groups={50: Right.OPERATE}).reach_beyond(50)
        assert Rules(7, groups={50: Right.OPERATE, 51: Right.READ}).reach_beyond(50)
        assert Rules(7, users={8: Right.READ}).reach_beyond(50)
        assert Rules(7, everyone=Right.READ).reach_beyond(50)

    @given(RULES, IDS, st.frozensets(IDS))
    def test_more_groups_never_take_a_right_away(self, rules: Rules, uid: int, groups: frozenset[int]) -> None:
        assert rules.right_of(peer(uid, *groups)) >= rules.right_of(peer(uid))


class TestBucket:
    def test_a_burst_is_let_through_and_then_the_rate(self) -> None:
        bucket = Bucket(rate=2, burst=4, now_ns=0)
        assert [bucket.take(0) for _ in range(5)] == [True] * 4 + [False]
        assert [bucket.take(SECOND), bucket.take(SECOND), bucket.take(SECOND)] == [True, True, False]

    def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        bucket = Bucket(rate=1, burst=1, now_ns=5 * SECOND)
        assert bucket.take(5 * SECOND)
        assert not bucket.take(0)
        assert not bucket.take(5 * SECOND)
        assert bucket.take(6 * SECOND)

    @given(st.lists(st.integers(0, SECOND), max_size=200))
    def test_never_more_than_burst_and_rate_allow(self, pauses: list[int]) -> None:
        bucket, now, taken = Bucket(rate=10, burst=3, now_ns=0), 0, 0
        for pause in pauses:
            now += pause
            taken += bucket.take(now)
        assert taken <= 3 + 10 * now / SECOND + 1e-6


class TestGate:
    def gate(self, clients: int = 2, per_user: int = 2, connects: float = 1000, calls: float = 1000) -> QuotaGate:
        return QuotaGate(Quota(clients, per_user, connects, calls))

    def test_one_user_cannot_take_all_the_room(self) -> None:
        gate = self.gate(clients=3, per_user=2)
        assert [gate.admit(8, Right.READ, 0) is None for _ in range(3)] == [True, True, False]
        assert gate.admit(9, Right.READ, 0) is None

    def test_an_admin_gets_in_when_it_is_full(self) -> None:
        gate = self.gate(clients=1, per_user=5)
        assert gate.admit(8, Right.OPERATE, 0) is None
        refusal = gate.admit(9, Right.OPERATE, 0)
        assert refusal is not None
        assert (refusal.what, refusal.limit) == ("another client", 1)
        assert [gate.admit(0, Right.ADMIN, 0) for _ in range(ADMIN_RESERVE)] == [None] * ADMIN_RESERVE
        assert gate.admit(0, Right.ADMIN, 0) is not None

    def test_what_is_refused_is_named_with_its_limit(self) -> None:
        gate = self.gate(clients=5, per_user=1, calls=1)
        assert gate.admit(8, Right.OPERATE, 0) is None
        full = gate.admit(8, Right.OPERATE, 0)
        assert full is not None
        assert (full.what, full.limit) == ("another client of user 8", 1)
        fast = [gate.call(8, Right.OPERATE, 0) for _ in range(3)][-1]
        assert fast is not None
        assert (fast.what, fast.limit) == ("another call of user 8 in this second", 1)

    def test_who_leaves_makes_room(self) -> None:
        gate = self.gate(clients=1)
        assert gate.admit(8, Right.READ, 0) is None
        gate.leave(8, 0)
        assert gate.admit(9, Right.READ, 0) is None

    def test_connections_are_paced_also_those_that_are_refused(self) -> None:
        gate = self.gate(clients=100, per_user=100, connects=1)
        refused = [gate.admit(8, Right.READ, 0) for _ in range(3)][-1]
        assert refused is not None
        assert (refused.what, refused.limit) == ("another connection of user 8 in this second", 1)
        assert gate.admit(9, Right.READ, 0) is None
        assert gate.admit(8, Right.READ, SECOND) is None

    def test_calls_are_paced_but_not_those_of_admins(self) -> None:
        gate = self.gate(calls=1)
        gate.admit(8, Right.READ, 0)
        assert [gate.call(8, Right.READ, 0) is None for _ in range(3)] == [True, True, False]
        assert all(gate.call(0, Right.ADMIN, 0) is None for _ in range(100))

    def test_unfinished_frames_of_one_user_are_bounded_and_given_back(self) -> None:
        gate = self.gate()
        gate.admit(8, Right.READ, 0)
        assert gate.hold(8, Right.READ, MAX_PARTIAL) is None
        assert gate.hold(8, Right.READ, 1) is not None
        assert gate.hold(8, Right.READ, -MAX_PARTIAL) is None
        assert gate.hold(8, Right.READ, MAX_PARTIAL - 1) is None
        gate.admit(0, Right.ADMIN, 0)
        assert gate.hold(0, Right.ADMIN, 2 * MAX_PARTIAL) is None

    def test_answers_that_one_user_has_not_read_are_bounded_for_every_further_call(self) -> None:
        gate = self.gate()
        gate.admit(8, Right.READ, 0)
        gate.admit(9, Right.READ, 0)
        gate.wait(8, MAX_UNREAD)
        assert gate.unread(8, Right.READ) is None
        assert gate.call(8, Right.READ, 0) is None
        gate.wait(8, 1)
        for refusal in (gate.unread(8, Right.READ), gate.call(8, Right.READ, 0)):
            assert refusal is not None
            assert (refusal.what, refusal.limit) == ("another byte of answers that user 8 has not read", MAX_UNREAD)
        assert gate.call(9, Right.READ, 0) is None
        assert gate.call(8, Right.ADMIN, 0) is None
        gate.wait(8, -1)
        assert gate.call(8, Right.READ, 0) is None

    def test_streams_of_one_user_are_bounded_and_given_back(self) -> None:
        gate = self.gate()
        gate.admit(8, Right.READ, 0)
        assert [gate.stream(8, Right.READ) for _ in range(MAX_STREAMS)] == [None] * MAX_STREAMS
        refusal = gate.stream(8, Right.READ)
        assert refusal is not None
        assert (refusal.what, refusal.limit) == ("another stream of user 8", MAX_STREAMS)
        gate.streamed(8)
        assert gate.stream(8, Right.READ) is None
        assert gate.stream(8, Right.ADMIN) is None

    def test_users_that_have_gone_cost_nothing(self) -> None:
        gate = self.gate(connects=1)
        for uid in range(1, 3 * MAX_IDLE_USERS):
            gate.admit(uid, Right.READ, uid * 10 * SECOND)
            gate.leave(uid, uid * 10 * SECOND)
        assert len(gate._users) <= MAX_IDLE_USERS + 1
        assert gate.connections == 0
