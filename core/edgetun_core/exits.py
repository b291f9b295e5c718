"""Exit codes of every edgetun command, one table for all; docs/reference/commands.md is made from it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

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


MEANINGS: Final[dict[int, str]] = {
    ExitCode.OK: "It did what it was told; a long-running command was stopped, and ended in good order.",
    ExitCode.FAILURE: "Something failed while running, or is not as it should be (`edgetun validate`, `demo`, `load`).",
    ExitCode.USAGE: "A flag, a setting, a file or a manifest is wrong.",
    ExitCode.REFUSED: "The other side refused: a bad, expired or revoked token, a name that is taken.",
    ExitCode.UNREACHABLE: "The server, or every exit node, is out of reach.",
    ExitCode.PORT_TAKEN: "An address to listen on is taken by another program, or is not ours to use.",
    128 + 2: "Interrupted before it could end in good order: the second Ctrl-C (128 + the signal's number).",
}
"""What docs/reference/commands.md says of each code."""
