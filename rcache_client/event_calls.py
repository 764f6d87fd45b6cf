"""The calls that listen to changes: the part of `Client` that subscribes.

Which thread runs it: the caller's; each call blocks to its budget at most. A subscription has threads of its own, one for each
node, until it is closed.
What it owns: the subscriptions that are not closed, as long as somebody else holds them.
What it must not know: feeds, connections.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from rcache_client.arguments import Key, key_bytes
from rcache_client.calls import Caller
from rcache_client.events import Event
from rcache_client.feed_set import FeedSet, Listener, Selection
from rcache_client.routing import Router
from rcache_client.subscription import Subscription, Watcher
from rcache_client.wire.feeds import Selects


class EventCalls:
    """Subscribing to what is changed, by whatever client."""

    _caller: Caller
    _router: Router
    _subscriptions: weakref.WeakSet[Subscription | FeedSet]

    def subscribe(
        self,
        *,
        key: Key | None = None,
        prefix: Key | None = None,
        bucket: int | None = None,
        values: bool = True,
        places: Mapping[int, int] | None = None,
        budget: float | None = None,
    ) -> Subscription:
        """Be told of every change that is made from now on, once it is safe: committed at all backups of its bucket.

            with client.subscribe(prefix="user:") as events:
                for event in events:
                    print(event.operation, event.key, event.value)

        `key`: of one key; `prefix`: of keys that begin with it; `bucket`: of one bucket; none of these: of everything. A
        `prefix` and a `bucket` go together. `values`: with the new values, or without; they come as the bytes that are stored.
        `places`: go on from there, by what an earlier subscription's `places` said.

        Of each bucket events come in order, each once, through restarts, failovers and handovers; what is missing in between
        is an event of its own, a GAP: what was known of that bucket's keys may be old. Raises `ServersUnavailable`,
        `UnknownOpcode` where the servers are too old for it, `TypeError`, `ValueError`, and as `view` does.
        """
        if key is not None and (prefix is not None or bucket is not None):
            raise ValueError("a key, or a prefix and a bucket, not both")
        selects, selector = Selects.EVERYTHING, b""
        if key is not None:
            selects, selector = Selects.KEY, key_bytes(key)
        elif prefix:
            selects, selector = Selects.PREFIX, key_bytes(prefix)
        deadline = self._caller.deadline(budget)
        self._caller.view(deadline)  # or it says why no node can be asked
        selection = Selection(selects, selector, values=bool(values))
        subscription = Subscription(self._router, selection, bucket, places or {})
        self._subscriptions.add(subscription)  # before it begins: a client that is closed meanwhile ends it
        subscription.begin(deadline)
        return subscription

    def watch(  # noqa: PLR0913  each by its name
        self,
        callback: Callable[[Event], object],
        *,
        key: Key | None = None,
        prefix: Key | None = None,
        bucket: int | None = None,
        values: bool = True,
        places: Mapping[int, int] | None = None,
        budget: float | None = None,
        name: str = "rcache-watch",
    ) -> Watcher:
        """As `subscribe`; `callback` is called with each event, by a thread of that name, until the watcher is closed."""
        subscription = self.subscribe(key=key, prefix=prefix, bucket=bucket, values=values, places=places, budget=budget)
        return Watcher(subscription, callback, name)

    def listen(self, listener: Listener, *, values: bool = True, places: Mapping[int, int] | None = None) -> FeedSet:
        """Have a `Listener` told of all changes as the nodes tell them: records (`docs/records.md`) instead of events, with
        what begins, ends, is missing and is proven. For programs that record or mirror a cluster.

        The feeds' own threads call it. Nothing begins before `begin` is called; `close`, or the client's, ends it.
        """
        feeds = FeedSet(self._router, Selection(Selects.EVERYTHING, b"", values=bool(values)), listener, places=places)
        self._subscriptions.add(feeds)
        return feeds
