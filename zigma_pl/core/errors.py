"""Errors that the user can fix, which the command line prints as one line instead of a traceback, and exit statuses."""

from collections.abc import Iterator

PREEMPTED_STATUS = 75  # EX_TEMPFAIL: the run was told to stop and saved a checkpoint; run it again to resume


class UserError(ValueError):
    """Invalid input that the user can correct. The message names the file or option and says how to fix it."""


class BackendUnavailable(RuntimeError):
    """A backend chosen by name cannot run here. The message gives the reason and how to make it available."""


def expected_error(error: BaseException | None) -> BaseException | None:
    """Return the first of the errors above in a chain of causes, as jsonargparse wraps errors from constructors."""
    return next((cause for cause in causes(error) if isinstance(cause, (UserError, BackendUnavailable))), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__
