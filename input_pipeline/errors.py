"""The one exception that a user causes: main.py prints its message as one line, without a traceback."""


class UserError(Exception):
    """Bad input from a user.

    The message names the thing, says what was expected and what to do, in one line.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
