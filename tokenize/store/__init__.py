"""The documents of a store that is being written, and the leases of its writers."""
