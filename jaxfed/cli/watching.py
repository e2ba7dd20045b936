"""A command watched from outside: progress on stderr, with a clock, and the signals that end it."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from jaxfed.simulation import lock, signals

SHOWN = logging.getLogger("jaxfed")  # whatever the package reports of its progress


class Watch(logging.Handler):
    """Shows what is being done until rounds begin, and ends the program at a signal until then.

    On a terminal a line that changes each second; elsewhere plain lines, once a second has passed,
    and then all of them. From `rounds_begin` to `rounds_end` it shows nothing, and signals are only
    noted.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.noted: list[int] = []
        self.begin = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.doing, self.pending = "starting", list[tuple[float, str]]()
        self.quiet = self.at_work = self.slow = False
        self.over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a message from the package."""
        self.doing = record.getMessage()
        self.pending.append((self._seconds(), self.doing))

    def rounds_begin(self) -> None:
        if self.slow:
            self._print_lines()
        self.clear()
        self.at_work = self.quiet = True

    def rounds_end(self) -> None:
        self.doing, self.at_work = "drawing the plots", False

    def clear(self) -> None:
        """Removes the line that changes, to make room for others."""
        self.pending.clear()
        if self.terminal and not self.quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Shows progress until the command is over."""
        while not self.over.wait(0.25):
            if self.quiet:
                self.pending.clear()
            elif self.terminal and self.pending:
                line = f"\r{self._seconds():5.0f} s  {self.doing}\x1b[K"
                print(line, end="", file=sys.stderr, flush=True)
            elif self.pending and self._seconds() > self.pending[0][0] + 1:
                self.slow = True
                self._print_lines()

    def _print_lines(self) -> None:
        lines, self.pending = self.pending, []
        for seconds, line in lines:
            print(f"{seconds:5.0f} s  {line}", file=sys.stderr, flush=True)

    def listen(self, wakened: socket.socket) -> None:
        """Ends the program at a signal, also while the main thread is inside the compiler."""
        while number := wakened.recv(1):
            if number[0] in signals.ENDING and not self.at_work:
                self._end(signal.Signals(number[0]))

    def _end(self, number: signal.Signals) -> None:
        lock.release_all()
        self.clear()
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        sentence = f"jaxfed: stopped by {name} after {self._seconds():.0f} s ({self.doing})"
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            print(sentence, file=sys.stderr, flush=True)
        os._exit(128 + number)

    def _seconds(self) -> float:
        return time.monotonic() - self.begin


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """A Watch over the command that runs meanwhile."""
    watch, level = Watch(), SHOWN.level
    with contextlib.ExitStack() as stack:
        SHOWN.addHandler(watch)
        SHOWN.setLevel(logging.INFO)
        SHOWN.propagate = False  # packages below give the root logger a handler of its own
        stack.callback(setattr, SHOWN, "propagate", True)
        stack.callback(SHOWN.setLevel, level)
        stack.callback(SHOWN.removeHandler, watch)
        threading.Thread(target=watch.show, daemon=True).start()
        stack.callback(watch.clear)
        stack.callback(watch.over.set)
        if threading.current_thread() is threading.main_thread():
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=watch.listen, args=(ours,), daemon=True).start()
            stack.callback(theirs.close)  # which ends the thread
            stack.callback(signal.set_wakeup_fd, before)
            stack.enter_context(signals.noting(watch.noted))
        yield watch
