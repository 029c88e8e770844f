"""What masks hold, found by looking at all of them, and what the values mean: which class each is, or none."""
