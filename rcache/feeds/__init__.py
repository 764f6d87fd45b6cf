"""Feeds: the committed changes of the buckets that this node is primary of, told to whoever subscribed, in their order."""
