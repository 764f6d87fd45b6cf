"""What both bodies of the engine count the same way: what a change uses of the room that a backup lends.

Which thread runs it: any. What it owns: nothing. What it must not know: how a body keeps its items.
"""

ITEM_BYTES = 64
"""What an item counts beside its key and its value. The nodes of a cluster need not run the same body, nor have the same sizes
of chunks: so both sides count like this, and the backup lends no more of it than it has room for at the worst it makes of
it."""


def credit_cost(key_bytes: int, value_bytes: int) -> int:
    """What an item counts, in bytes."""
    return ITEM_BYTES + key_bytes + value_bytes
