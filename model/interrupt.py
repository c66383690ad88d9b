"""Ends a job within moments of SIGTERM, leaving only whole files behind.

The platform kills five seconds after it asks, while one iteration on a CPU can take longer, so the
signal is not left to Python's main thread: a thread of its own waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Interrupt:
    """From its making on, SIGTERM and SIGINT end the process with 128 + their number.

    To be made before anything starts a thread (numpy's import does): threads inherit that the
    signals are blocked, and one that does not block them would die of them at once.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, name="interrupt", daemon=True).start()

    def clean_up(self, signal_name: str) -> str:
        """Leave things as they should be found; the last line for stderr. Replaced by the job."""
        return f"stopped by {signal_name} before any stack was begun"

    def _wait(self) -> None:
        received = signal.Signals(signal.sigwait(SIGNALS))
        try:
            last_line = self.clean_up(received.name)
        except Exception as error:  # the process must end whatever happens here
            last_line = f"stopped by {received.name}; cleaning up failed: {error!r}"
        sys.stdout.flush()
        sys.stderr.write(f"{last_line}\n")
        sys.stderr.flush()
        os._exit(128 + received)
