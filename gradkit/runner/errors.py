"""The one error whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake in the input: shown as one message, without a traceback, exit status 2."""
