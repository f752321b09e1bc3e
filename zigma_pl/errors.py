"""The two errors a user can put right; the command line prints them as one line instead of a traceback."""


class UserError(ValueError):
    """Input that the user can put right. The message names the file or option at fault and the remedy."""


class BackendUnavailable(RuntimeError):
    """A named backend cannot run here. The message gives the reason and what would make it available."""
