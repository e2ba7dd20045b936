"""Signals that ask a run to stop: noted while rounds are at work, acted on when they have ended."""

import contextlib
import signal
import threading
from collections.abc import Iterator

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has the first two
)


@contextlib.contextmanager
def noting(noted: list[int]) -> Iterator[None]:
    """Appends the signals of ENDING that come meanwhile to `noted`, instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt at once. Signals that the process ignores, as under
    nohup, stay ignored. Only the main thread can note signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _: object) -> None:
        if noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.append(number)

    before = {}
    try:
        for number in ENDING:
            # None is a handler that was not set from Python, which could not be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: int) -> BaseException:
    """The exception that ends a program as this signal would: KeyboardInterrupt or SystemExit."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
