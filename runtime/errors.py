"""Errors whose message a user can act on: the command prints one line and exits with code 2."""


class UserError(Exception):
    """A wrong setting or an unreachable service.

    Args:
      field: the flag, key or resource that is wrong, as the user spells it (`--port`).
      value: what it was.
      problem: what is wrong with it, one clause.
      remedy: what to do, one clause.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{field}={value}: {problem}; {remedy}")
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy


class UnreachableError(UserError):
    """No server answers at an address that may be right: a process that runs for ever waits for it."""


class StoppedError(Exception):
    """The process was told to stop while it waited for a server: its command ends with exit code 0."""


FOREIGN_JSON_ERRORS = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What reading JSON of somebody else may raise: no JSON, other fields or kinds, 1e400 as an integer, 1,000 brackets."""
