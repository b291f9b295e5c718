"""What the cache counts, per tunnel; the metrics read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """Plain counts that only grow. Each request that passes the stage counts in exactly one of the first seven."""

    hits: int = 0
    """Answered from store, fresh, or by 304."""
    stale: int = 0
    """Answered from store while the origin is asked again in the background."""
    misses: int = 0
    """Asked for a fetch and led it."""
    collapsed: int = 0
    """Waited for, or joined, the fetch of another."""
    alone: int = 0
    """Passed through because the key is known as not to be collapsed, or a Range had nothing to be cut from."""
    bypass: int = 0
    """Passed through untouched: another method, Authorization, Cookie, a body, ..."""
    refused: int = 0
    """`only-if-cached` with nothing stored."""

    fetches: int = 0
    """Requests sent for all who wait: misses, promotions and refreshes."""
    validations: int = 0
    """Of these, the ones that asked whether what is stored still holds."""
    validated: int = 0
    """Of these, the ones answered by 304."""
    released: int = 0
    """Followers who had to make a request of their own after all."""
    impatient: int = 0
    """Of these, the ones whose patience ended."""
    promoted: int = 0
    stale_on_error: int = 0
    stores: int = 0
    not_stored: int = 0
    """Complete, storable, and yet refused by the store: invalidated meanwhile, or no room."""
    broken: int = 0
    """Fetches that broke off after the head."""
    invalidations: int = 0
    cut_off: int = 0
    """Readers reset because they fell too far behind a body too large to keep."""
