"""One shard, from images to a committed token tar."""
