"""`beit doctor`: what may be wrong with a machine, a store, a run or an encoder, and the command that mends it."""
