"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Something that the user can mend: what is wrong, where, and what to do, in one sentence."""
