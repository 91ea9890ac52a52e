"""The one exception that a user causes: main.py prints its message as one line, without a traceback."""


class UserError(Exception):
    """Bad input from a user.

    The message names the thing, says what was expected and what to do, in one line.

    Attributes:
      kind: what is wrong in two words (`missing image`), by which bad records are counted; see `records.BadRecordLog`.
    """

    def __init__(self, message: str, kind: str = "bad input"):
        super().__init__(" ".join(str(message).split()))
        self.kind = kind

    def __reduce__(self):  # workers send it to their parent
        return type(self), (str(self), self.kind)
