"""rcache: a clustered in-memory cache; this package is the server and its tools."""
