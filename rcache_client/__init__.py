"""The synchronous client of rcache. Standard library only."""
