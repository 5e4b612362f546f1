"""Errors that a person can act on.

Everything a user can cause and mend is an :class:`AssayError`: one sentence that names the file or value, the place and
the mend. The command line prints that sentence and exits with 2; a traceback is a bug of ours.
"""


class AssayError(Exception):
    """One sentence for the person at the terminal: what is wrong, where, and how to mend it."""


class Diverged(AssayError):
    """A training whose loss is not finite any more: the mend is another setting, so who tries several takes it as lost."""
