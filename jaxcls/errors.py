"""The exceptions that the command line turns into a message instead of a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend.

    The message names the field, file or record, the value found, and what to do. The command line
    prints it and exits with status 2; library users may catch it as a `ValueError`.
    """


class DataError(UserError):
    """A data set, split, record or image that cannot be used; the message says which and why."""


class BrokenImageError(DataError):
    """Bytes that are no image, or a damaged one; `data.broken` says what happens then."""
