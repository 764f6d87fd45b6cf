"""The synchronous client of rcache. Standard library only.

    from rcache_client import Client

    with Client("127.0.0.1:13600") as cache:
        cache.set("greeting", b"hello", ttl=60)

What it is: the public names. `docs/client.md` is the guide to them; everything else in this package may change.
Which thread runs it: the caller's, several at once.
What it owns: nothing; a `Client` owns its connections. What it must not know: how any of them works.
"""

from rcache_client.cached import CachedFunction, cached
from rcache_client.client import Client
from rcache_client.compute_counts import ComputeCounts
from rcache_client.errors import (
    AuthenticationFailed,
    BadArgument,
    BudgetSpent,
    Busy,
    ClientClosed,
    ConnectionLost,
    NoRoom,
    NotAllowed,
    NotANumber,
    NotExecuted,
    OutcomeUnknown,
    OutOfRange,
    Paused,
    PoolExhausted,
    PrimaryUnavailable,
    ProtocolError,
    RcacheError,
    Refused,
    ServersUnavailable,
    SomeKeysFailed,
    StillComputing,
    TimedOut,
    TooLarge,
    UnknownOpcode,
    WrongCluster,
    WrongFormat,
)
from rcache_client.events import Event, Operation
from rcache_client.key_calls import Inspection, ValueAndTtl, ValueAndVersion
from rcache_client.near_cache import NearCache
from rcache_client.near_slots import NearCacheStats
from rcache_client.serializers import BytesSerializer, JsonSerializer, Serializer, StrSerializer
from rcache_client.service_calls import Persistence
from rcache_client.subscription import Subscription, Watcher
from rcache_client.view import Bucket, Node, View
from rcache_client.wire.opcodes import Role

__version__ = "0.1.0"

__all__ = [
    "AuthenticationFailed",
    "BadArgument",
    "Bucket",
    "BudgetSpent",
    "Busy",
    "BytesSerializer",
    "CachedFunction",
    "Client",
    "ClientClosed",
    "ComputeCounts",
    "ConnectionLost",
    "Event",
    "Inspection",
    "JsonSerializer",
    "NearCache",
    "NearCacheStats",
    "NoRoom",
    "Node",
    "NotANumber",
    "NotAllowed",
    "NotExecuted",
    "Operation",
    "OutOfRange",
    "OutcomeUnknown",
    "Paused",
    "Persistence",
    "PoolExhausted",
    "PrimaryUnavailable",
    "ProtocolError",
    "RcacheError",
    "Refused",
    "Role",
    "Serializer",
    "ServersUnavailable",
    "SomeKeysFailed",
    "StillComputing",
    "StrSerializer",
    "Subscription",
    "TimedOut",
    "TooLarge",
    "UnknownOpcode",
    "ValueAndTtl",
    "ValueAndVersion",
    "View",
    "Watcher",
    "WrongCluster",
    "WrongFormat",
    "__version__",
    "cached",
]
