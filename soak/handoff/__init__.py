"""What a handoff costs: a filled node leaves under load, beside Redis Cluster's migration of slots on the same items."""
