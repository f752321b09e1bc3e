"""The two errors a user can put right; the command line prints them as one line instead of a traceback.

And the status of what ends without an error of anybody.
"""

from collections.abc import Iterator

PREEMPTED_STATUS = 75  # EX_TEMPFAIL, of a run that was asked to end and has saved: nothing is wrong, run it again


class UserError(ValueError):
    """Input that the user can put right. The message names the file or option at fault and the remedy."""


class BackendUnavailable(RuntimeError):
    """A named backend cannot run here. The message gives the reason and what would make it available."""


def expected_error(error: BaseException | None) -> BaseException | None:
    """Return the error for users in a chain of causes: jsonargparse wraps those of constructors in its own."""
    return next((cause for cause in causes(error) if isinstance(cause, (UserError, BackendUnavailable))), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it comes from."""
    while error is not None:
        yield error
        error = error.__cause__
