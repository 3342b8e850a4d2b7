"""Signals that stop training after the current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


def name_of(number: int) -> str:
    """What a user calls a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Catch the first stop signal; the yielded function, polled between steps, returns its number or 0.

    A second Ctrl-C has its usual effect; the others are ignored until the run is saved. Schedulers that
    preempt a job send SIGTERM or SIGUSR1, a closing terminal SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    # Ignored signals stay ignored: nohup ignores SIGHUP.
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] is not signal.SIG_IGN]

    def receive(number: int, _: object) -> None:
        received.append(number)
        again = before[signal.Signals(number)] if number == signal.SIGINT else signal.SIG_IGN
        signal.signal(number, again)

    for number in handled:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number in handled:
            signal.signal(number, before[number])
