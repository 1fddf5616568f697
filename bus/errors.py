"""What can go wrong on a call, one class per party at fault.

* `Unavailable`, `DeadlineExceeded`: nobody answered; the call may or may not have been carried
  out.
* `CallError`: the server answered, with an error. A domain declares its own by subclassing it
  with a `code`; the caller's side finds the class by that code, sentence and values intact.
* `WrongThread`, `MessageTooLarge`: this process broke the rules of its own client.
"""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

Value = int | float | str


class BusError(Exception):
    """Base of everything the bus raises."""


class Unavailable(BusError):
    """No server behind the address, or the connection broke while a call was open."""


class DeadlineExceeded(BusError):
    """The server is connected but did not answer in time."""


class WrongThread(BusError):
    """A client was used by another thread, or in another process, than the one that made it."""


class MessageTooLarge(BusError):
    """The message is larger than the server accepts; it was not sent."""


class BadAnswer(BusError):
    """The server broke the protocol: its answer is not what the request's declaration says."""


class CallError(BusError):
    """The answer to a call was an error. `values` holds the numbers of the sentence."""

    code: ClassVar[str] = "error"
    _by_code: ClassVar[dict[str, type[CallError]]] = {}

    def __init__(self, message: str, **values: Value) -> None:
        super().__init__(message)
        self.message = message
        self.values = values

    @override
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            known = CallError._by_code.setdefault(cls.code, cls)
            if known is not cls:
                raise TypeError(f"error code {cls.code!r} is declared by {known} and by {cls}")

    @staticmethod
    def of(code: str, message: str, values: dict[str, Value]) -> CallError:
        """The error as its own class again; a code this process does not know is a `CallError`."""
        error = CallError._by_code.get(code, CallError)(message)
        error.values = values
        return error


class UnknownMessage(CallError):
    """The server has no message of that name."""

    code = "unknown_message"


class BadMessage(CallError):
    """The body of a message could not be read as what its name says."""

    code = "bad_message"


class WrongVersion(CallError):
    """Client and server speak different versions of the protocol."""

    code = "wrong_version"


class StaleEpoch(CallError):
    """The request was meant for an earlier incarnation of the server: say hello again."""

    code = "stale_epoch"


class HandlerFailed(CallError):
    """The server's handler raised; its log has the traceback."""

    code = "handler_failed"
