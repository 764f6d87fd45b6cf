"""What nodes say to each other: heartbeats, links that carry records, and what takes them in."""
