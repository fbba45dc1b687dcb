"""The one exception whose message is meant for the person at the keyboard."""


class SetupError(ValueError):
    """A setting, a weight file or a checkpoint that cannot work.

    The message names what was found, what was expected and the option to change; the command
    prints it without a traceback.
    """


class NonFiniteLossError(SetupError):
    """A training whose loss has become NaN or infinite."""
