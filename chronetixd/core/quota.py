"""Quotas for what one user may take of the daemon: connections at once, connections and calls a second.

Rules: time is passed in, as nanoseconds. Nothing is kept of a user who has no connection and whose buckets are full
again, so that the number of users costs nothing. Admins may use a reserve of connections that other users cannot take,
and their rates are not limited: a user who may change a limit need not be held by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from chronetixd.core.access import Right

ADMIN_RESERVE = 8
"""Connections beyond ``clients`` that only admins get, so that an admin can always connect to look and to stop things.
"""

MAX_PARTIAL = 64 * 1024 * 1024
"""Bytes of unfinished frames over all connections of one user who is no admin. Without this limit a user who may only
read could make the daemon hold a whole frame for each connection.
"""

MAX_UNREAD = 64 * 1024 * 1024
"""Bytes of unread answers over all connections of one user who is no admin."""

MAX_STREAMS = 64
"""Open streams (events, logs, taps) of one user who is no admin: each record is sent to each stream."""

CALL_WORK = 2048
"""Decoded items that cost as much as one call, for the rate of calls: the size of what is sent counts, not only how
often.
"""

FREE_WORK = 256
"""Decoded items of a message that cost nothing extra: the call itself pays for them, and a greeting uses up no call."""

MAX_IDLE_USERS = 1024
"""Users without a connection whose buckets are kept before full buckets are removed."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits. Rates are for each user; a burst of twice a second's worth is let through."""

    clients: int
    clients_per_user: int
    connects_per_s: float
    calls_per_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a request would exceed, for the error ``quota-exceeded``."""

    what: str
    limit: int | float


class Bucket:
    """Fills by ``rate`` tokens a second up to ``burst``; each use takes one."""

    __slots__ = ("_burst", "_level", "_rate", "_seen_ns")

    def __init__(self, rate: float, burst: float, now_ns: int) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._seen_ns = now_ns

    def _fill(self, now_ns: int) -> None:
        self._level = min(self._burst, self._level + max(0, now_ns - self._seen_ns) * self._rate / 1e9)
        self._seen_ns = max(now_ns, self._seen_ns)

    def take(self, now_ns: int) -> bool:
        """Take a token. Returns False, and takes nothing, when there is none."""
        self._fill(now_ns)
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def spend(self, amount: float, now_ns: int) -> None:
        """Take ``amount`` tokens, even if the bucket holds fewer. The debt is at most ``burst``."""
        self._fill(now_ns)
        self._level = max(self._level - amount, -self._burst)

    def full(self, now_ns: int) -> bool:
        """Return whether the bucket is full, so that nothing is lost by forgetting it."""
        self._fill(now_ns)
        return self._level >= self._burst


class _User:
    __slots__ = ("calls", "connections", "connects", "partial", "streams", "unread")

    def __init__(self, quota: Quota, now_ns: int) -> None:
        self.connections = 0
        self.partial = 0
        self.unread = 0
        self.streams = 0
        self.connects = Bucket(quota.connects_per_s, max(1.0, 2 * quota.connects_per_s), now_ns)
        self.calls = Bucket(quota.calls_per_s, max(1.0, 2 * quota.calls_per_s), now_ns)


class QuotaGate:
    """Counts the connections and calls of every user. ``quota`` may be replaced; existing buckets keep their rate."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.connections = 0
        self._users: dict[int, _User] = {}

    def admit(self, uid: int, right: Right, now_ns: int) -> Refusal | None:
        """Count a connection of user ``uid``, to be released by :meth:`leave`. Returns a refusal, and counts nothing,
        when a limit is reached."""
        user = self._user(uid, now_ns)
        refusal = self._refusal(user, uid, right, now_ns)
        if refusal is None:
            user.connections += 1
            self.connections += 1
        return refusal

    def _refusal(self, user: _User, uid: int, right: Right, now_ns: int) -> Refusal | None:
        quota = self.quota
        if right is Right.ADMIN:
            most = quota.clients + ADMIN_RESERVE
            return Refusal("another client", most) if self.connections >= most else None
        if not user.connects.take(now_ns):
            return Refusal(f"another connection of user {uid} in this second", quota.connects_per_s)
        if user.connections >= quota.clients_per_user:
            return Refusal(f"another client of user {uid}", quota.clients_per_user)
        return Refusal("another client", quota.clients) if self.connections >= quota.clients else None

    def leave(self, uid: int, now_ns: int) -> None:
        """Release a connection that was admitted and has ended."""
        user = self._users[uid]
        user.connections -= 1
        self.connections -= 1
        self._forget(now_ns)

    def hold(self, uid: int, right: Right, more: int) -> Refusal | None:
        """Count ``more`` bytes of unfinished frames of connected user ``uid``; a negative number releases bytes. The
        bytes are counted even when they are refused: the connection releases them when it ends."""
        user = self._users[uid]
        user.partial += more
        if right is Right.ADMIN or more <= 0 or user.partial <= MAX_PARTIAL:
            return None
        return Refusal(f"another byte of unfinished frames of user {uid}", MAX_PARTIAL)

    def call(self, uid: int, right: Right, now_ns: int) -> Refusal | None:
        """Count a call of connected user ``uid``. Returns a refusal when a limit is reached."""
        if right is Right.ADMIN:
            return None
        if not self._user(uid, now_ns).calls.take(now_ns):
            return Refusal(f"another call of user {uid} in this second", self.quota.calls_per_s)
        return self.unread(uid, right)

    def work(self, uid: int, items: int, now_ns: int) -> None:
        """Charge connected user ``uid`` for ``items`` decoded items; the next calls pay for them."""
        self._user(uid, now_ns).calls.spend(max(0, items - FREE_WORK) / CALL_WORK, now_ns)

    def wait(self, uid: int, more: int) -> None:
        """Count ``more`` bytes of answers that connected user ``uid`` has not read yet; a negative number releases
        bytes."""
        user = self._users.get(uid)
        if user is not None:
            user.unread += more

    def unread(self, uid: int, right: Right) -> Refusal | None:
        """Return a refusal when user ``uid`` has so many unread bytes that no further answer is made for any of that
        user's connections."""
        user = self._users.get(uid)
        if right is Right.ADMIN or user is None or user.unread <= MAX_UNREAD:
            return None
        return Refusal(f"another byte of answers that user {uid} has not read", MAX_UNREAD)

    def stream(self, uid: int, right: Right) -> Refusal | None:
        """Count an open stream, to be released by :meth:`streamed`. Returns a refusal, and counts nothing, when the
        limit is reached."""
        user = self._users[uid]
        if right is not Right.ADMIN and user.streams >= MAX_STREAMS:
            return Refusal(f"another stream of user {uid}", MAX_STREAMS)
        user.streams += 1
        return None

    def streamed(self, uid: int) -> None:
        """Release a stream that has ended."""
        user = self._users.get(uid)
        if user is not None:
            user.streams -= 1

    def _user(self, uid: int, now_ns: int) -> _User:
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _User(self.quota, now_ns)
        return user

    def _forget(self, now_ns: int) -> None:
        if len(self._users) > MAX_IDLE_USERS:
            self._users = {uid: user for uid, user in self._users.items() if _wanted(user, now_ns)}


def _wanted(user: _User, now_ns: int) -> bool:
    return user.connections > 0 or not (user.calls.full(now_ns) and user.connects.full(now_ns))
