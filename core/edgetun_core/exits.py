"""Exit codes of every edgetun command, one table for all; docs/reference/commands.md repeats it."""

from __future__ import annotations

from enum import IntEnum

from edgetun_core.errors import AddressUnavailable, AuthError, ConfigError, EdgetunError, UpstreamError


class ExitCode(IntEnum):
    """What a command tells its caller."""

    OK = 0
    FAILURE = 1
    """Something failed while running; the message says what."""
    USAGE = 2
    """A flag, a setting or a manifest is wrong."""
    REFUSED = 3
    """The other side refused us: a bad, expired or revoked token, a name that is taken."""
    UNREACHABLE = 4
    """The control server or every exit node is out of reach."""
    PORT_TAKEN = 5
    """An address to listen on is in use or not ours to use."""


def exit_code_of(error: EdgetunError) -> ExitCode:
    """The exit code of an error that ends a command."""
    match error:
        case AddressUnavailable():
            return ExitCode.PORT_TAKEN
        case ConfigError():
            return ExitCode.USAGE
        case AuthError():
            return ExitCode.REFUSED
        case UpstreamError():
            return ExitCode.UNREACHABLE
        case _:
            return ExitCode.FAILURE
