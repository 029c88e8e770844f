"""Whether a store is what it says: every shard, every sum, and views tokenised again."""
