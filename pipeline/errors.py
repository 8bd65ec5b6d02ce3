"""The one error that a user is meant to read, and how much of somebody's text stands in it."""


class UserError(ValueError):
    """Something that the user can mend: what is wrong, where, and what to do, in one sentence."""


def shortened(text: str, longest: int = 200) -> str:
    """`text`, or its first `longest` characters and a sign that there is more."""
    return text if len(text) <= longest else f"{text[:longest]} …"
