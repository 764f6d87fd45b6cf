"""What subscribers are told a second, how late, and what they cost the writers, beside Redis's keyspace notifications."""
