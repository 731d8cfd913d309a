"""The one error of our own; wrong values and types use Python's ValueError and TypeError."""


class UnsupportedError(NotImplementedError):
    """The call is valid, but no listed kernel can serve it here; the message lists every reason."""
