"""What the API server may answer instead of an object, as typed errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgetun_core.errors import EdgetunError, Presentation


class ClusterError(EdgetunError):
    """The API server could not be asked, or did not do what it was asked for."""

    presentation: ClassVar[Presentation] = Presentation(503, 0x01, "ApplyFailed", "cluster")


class ClusterUnreachable(ClusterError):
    """No answer in time, or no connection; asking again later is right."""


class ApiRefused(ClusterError):
    """An answer of 4xx or 5xx. `reason` is the API's own ("Invalid", "Forbidden", ...)."""

    def __init__(self, status: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.details: Mapping[str, Any] = details or {}


class ApiAbsent(ApiRefused):
    """The API server does not serve this kind: a CRD or an aggregated API that is not installed."""


class ObjectNotFound(ApiRefused):
    """The kind is served, and there is no object of this name (or its namespace is gone)."""


class Conflict(ApiRefused):
    """The object has changed since it was read, belongs to another manager, or has another UID than was asked for."""


class AlreadyExists(Conflict):
    """There is an object of this name already."""


class ResourceVersionGone(ApiRefused):
    """The history from this resource version is no longer there (410): list again."""


class Forbidden(ApiRefused):
    """Our roles do not allow it (or an admission policy, or a quota)."""


class Invalid(ApiRefused):
    """The object breaks its schema or a validation rule."""


def refused(status: int, body: Mapping[str, Any] | None) -> ApiRefused:
    """The error of an answer; `body` is its Status object, or None when it is none."""
    if body is None or body.get("kind") != "Status":
        if status == 404:
            return ApiAbsent(404, "NotFound", "the API server does not serve this kind")
        return ApiRefused(status, "", f"the API server answered {status}")
    reason = str(body.get("reason", ""))
    message = str(body.get("message", "")) or f"the API server answered {status}"
    details = body.get("details") or {}
    match status, reason:
        case 404, _ if not details.get("name"):
            return ApiAbsent(status, reason, message, details)
        case 404, _:
            return ObjectNotFound(status, reason, message, details)
        case 409, "AlreadyExists":
            return AlreadyExists(status, reason, message, details)
        case 409, _:
            return Conflict(status, reason, message, details)
        case 410, _:
            return ResourceVersionGone(status, reason, message, details)
        case 403, _:
            return Forbidden(status, reason, message, details)
        case 422, _ if any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
            return Conflict(status, reason, message, details)  # applied with the UID of an object that is gone
        case 422, _:
            return Invalid(status, reason, message, details)
    return ApiRefused(status, reason, message, details)
