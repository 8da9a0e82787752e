"""The exceptions of palorad; each carries one clear line for the person who reads it."""

from __future__ import annotations


class PaloradError(Exception):
    """The root of all of them."""


class InvalidFacts(PaloradError, ValueError):
    """Lines that are no facts: `problems` holds (line number, reason) in their order."""

    def __init__(self, problems: tuple[tuple[int, str], ...]) -> None:
        self.problems = problems
        shown = "; ".join(f"line {line}: {reason}" for line, reason in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        super().__init__(shown + more)


class UnknownGrader(PaloradError, ValueError):
    """A grader's name that nobody knows; the message names the nearest."""


class Ungradable(PaloradError, ValueError):
    """An expected answer that its grader cannot use, or a pattern that takes too long."""


class ConfigError(PaloradError):
    """The settings cannot be used: file, key and what is wrong, in one line."""


class TooManyProcesses(ConfigError):
    """More processes than can train on this host; trying again does not help."""

    final = True

    def __init__(self, processes: int, most: int, places: str) -> None:
        super().__init__(
            f"train.processes is {processes}, and this host has {most} {places} to train on: "
            f"set it to {most} at most"
        )


class NotFound(PaloradError, LookupError):
    """Nothing of that name or number is known."""


class Ambiguous(PaloradError, LookupError):
    """A prefix that fits more than one."""


class StateConflict(PaloradError):
    """A plan is not in the state that was expected of it, or may not move to the one asked for."""


class Superseded(PaloradError):
    """What a plan builds on is no longer what is target."""


class RequestRefused(PaloradError):
    """A request that is understood and may not be done."""


class DiskFull(PaloradError, OSError):
    """There is no room left where the state lives."""


class LedgerUnusable(PaloradError):
    """The ledger cannot be opened, or does not hold what it should."""


class LedgerDamaged(LedgerUnusable):
    """The ledger's file is not a sound database any more."""


class Inconsistent(PaloradError):
    """A change of the ledger that did not do what it must; nothing of it was kept."""


class AlreadyRunning(PaloradError):
    """Another daemon holds the state directory."""


class DaemonUnreachable(PaloradError):
    """Nobody answers on the control socket."""


class ForeignModule(PaloradError, ImportError):
    """Another distribution has taken the name of one of palorad's packages."""


class LedgerBusy(PaloradError):
    """The ledger is locked for the moment; trying again helps."""


class ServerUnreachable(PaloradError, ConnectionError):
    """A replica gives no answer: not running, too slow, or in the way of the network."""


class ServerRefused(PaloradError, RuntimeError):
    """A replica answered no: `status` is HTTP's and `body` what it said."""

    def __init__(self, message: str, *, status: int, body: str = "") -> None:
        self.status = status
        self.body = body
        super().__init__(message)


class ServerUnusable(PaloradError):
    """The server cannot be started, or does not do what palorad needs of it."""


class FeedFailed(PaloradError):
    """A poll that brought nothing.

    `final` where trying again cannot help by itself; `wait_s` is what the server asked for.
    """

    def __init__(self, message: str, *, final: bool = False, wait_s: float = 0.0) -> None:
        self.final = final
        self.wait_s = wait_s
        super().__init__(message)
