"""The one error type that users see: what is wrong, where, and what to do about it."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_CONTINUE = 75
"""EX_TEMPFAIL: the state is saved, run the same command again to continue."""


class UserError(Exception):
    """A problem the user can mend; its text names file, field or row, value and remedy."""


class ContinueLater(Exception):  # noqa: N818 - it is a request, not an error
    """Work was interrupted after its state was saved; running the same command again continues it."""
