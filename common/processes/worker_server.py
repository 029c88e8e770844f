"""Imported once, by the fork server that reader workers come from (`worker_process.py`), and nowhere else.

Importing it has an effect on purpose: the server ignores SIGTERM. A scheduler signals the whole process group; if
the server died of it, its workers would take their parent for dead and stop too, while the training process still
needs the batches of its current step. The server ends when the training process does: it holds one end of a pipe.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM sends it to every process of a job
