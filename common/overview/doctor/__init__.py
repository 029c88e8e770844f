"""`beit doctor`: is this machine fit, and are a store, a run, an encoder or a tokenizer well?

One finding per line, with the command that mends it. Checks look and change nothing; what reads every byte of a store
is `beit verify`, what says how long a training takes is `beit plan`.
"""
