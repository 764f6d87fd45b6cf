"""When a value is to be computed anew, while it is still there.

What it is: pure decisions on an envelope, the time it has left, and a random number.
Which thread runs it: the caller's. What it owns: nothing. What it must not know: the cluster, leases.

A value is due when its ttl has run out: by the time left to it, when no more than `stale_ms` is left. A little earlier at
random, so that of many callers one begins before the value is gone: probabilistic early expiration (XFetch; A. Vattani,
F. Chierichetti, K. Lowenstein, "Optimal probabilistic cache stampede prevention", VLDB 2015). It takes how long the last
computation took, times `beta`, times an exponentially distributed random number.
"""

from __future__ import annotations

import math
import random
import time
from hashlib import blake2b

from rcache_client.envelope import Envelope
from rcache_client.wire.opcodes import KEY_BYTES_MAX

EARLY_SHARE = 0.5
"""For at least the other half of its ttl a value is fresh, however long it takes to compute."""

REST_MAX_SECONDS = 1.0
"""A key is not left alone for longer, should its time have been read wrongly, or its value be replaced meanwhile."""

REST_SECONDS = 0.1
"""The pause after another caller was found to refresh it, it was too late to, or the cluster was in trouble."""

REST_MIN_SECONDS = 0.005
"""The server's clock and this one differ by at least what a request takes."""

REFRESH_PREFIX = b"rcache:refresh:"
"""Before a key: the key of the lease to refresh it. Not behind it: whoever subscribes to its prefix wants no leases."""

_HASH_BYTES = 32


def early_ms(envelope: Envelope, beta: float) -> float:
    """How long before the end of its ttl this reader takes the value for due: a new random number each time."""
    if not envelope.ttl_ms or not beta or not envelope.took_us:
        return 0.0
    draw = -math.log(1.0 - random.random())  # noqa: S311 - spreads refreshes, guards nothing
    return min(envelope.took_us / 1000 * beta * draw, envelope.ttl_ms * EARLY_SHARE)


def looks_due(envelope: Envelope, early: float) -> bool:
    """Whether it is worth asking the server, as far as this machine's clock can tell: not if it is for ever; and yes if that
    clock is behind the writer's, which says that it tells nothing."""
    if not envelope.ttl_ms:
        return False
    age_ms = int(time.time() * 1000) - envelope.stored_at_ms
    return age_ms < 0 or age_ms + early >= envelope.ttl_ms


def is_due(envelope: Envelope, left_ms: int, early: float) -> bool:
    """Whether to compute it anew, with so much left to it on the server: due, and likely to be done before it is gone."""
    return envelope.took_us / 1000 < left_ms <= envelope.stale_ms + early


def rest_s(envelope: Envelope, left_ms: int | None, early: float) -> float:
    """How long, in seconds, to serve it without asking the server again."""
    until_due_s = 0.0 if left_ms is None else (left_ms - envelope.stale_ms - early) / 1000
    if until_due_s <= 0:
        return REST_SECONDS
    return min(max(until_due_s, REST_MIN_SECONDS), REST_MAX_SECONDS)


def refresh_name(name: bytes) -> bytes:
    """The key of the lease to refresh that key."""
    if len(REFRESH_PREFIX) + len(name) <= KEY_BYTES_MAX:
        return REFRESH_PREFIX + name
    return REFRESH_PREFIX + blake2b(name, digest_size=_HASH_BYTES).digest()
