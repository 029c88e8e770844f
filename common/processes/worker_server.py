"""Imported once, by the fork server that reader workers come from (`worker_process.py`), and nowhere else.

Importing it has an effect on purpose: the server ignores the signals that ask a run to stop. A scheduler and a terminal
signal the whole process group; if the server died of it, its workers would take their parent for dead and stop too,
while the training process still needs the batches of its current step. The server ends when the training process does:
it holds one end of a pipe.
"""

import signal

from beit.common.processes.signals import STOP_SIGNALS

for signum in STOP_SIGNALS:
    signal.signal(signum, signal.SIG_IGN)
# They were held back from its first moment on (`start_worker_server`); those that came meanwhile are forgotten now.
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
