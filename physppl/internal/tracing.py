"""NumPyro's stack of handlers behind one re-entrant lock.

The stack is one list for the whole process: two threads that run models at once would meet each other's handlers. Every
handler takes the lock when it is entered and gives it back when it is left, so that a block of handlers runs alone.
Models run while programs are traced, never while they compute, so a thread that acts is not held up by one that fits.
"""

import threading

from numpyro.primitives import Messenger

_lock = threading.RLock()
_enter, _exit = Messenger.__enter__, Messenger.__exit__


def _locked_enter(self):
    _lock.acquire()
    return _enter(self)


def _locked_exit(self, exc_type, exc_value, traceback) -> None:
    try:
        _exit(self, exc_type, exc_value, traceback)
    finally:
        _lock.release()


def install() -> None:
    """Put the lock around NumPyro's own handlers, those of users included; again it does nothing."""
    Messenger.__enter__, Messenger.__exit__ = _locked_enter, _locked_exit
