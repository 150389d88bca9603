"""A mistake that the person at the keyboard can mend."""


class UserError(ValueError):
    """Its message is one sentence that says what to do; `cli.run` prints it without a traceback."""
