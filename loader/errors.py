"""The one exception of the loader."""


class LoaderError(Exception):
    """The data or the saved state cannot be used.

    Parameters
    ----------
    message : str
        "What failed: where: why (expected, found). What to do." One string and nothing else, so
        that the error survives the trip between processes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
