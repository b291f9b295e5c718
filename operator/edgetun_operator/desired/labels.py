"""Labels, annotations and owners of the objects that the operator makes: by them it knows its own again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgetun_cluster.kinds import Kind, Object

MANAGER: Final = "edgetun-operator"
STATUS_MANAGER: Final = "edgetun-operator-status"
HANDOVER_MANAGER: Final = "edgetun-operator-handover"
"""Holds `replicas` of a Deployment while it passes from a fixed number to an autoscaler."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
POOL: Final = "edgetun.dev/pool"
REGION: Final = "edgetun.dev/region"
TOKEN: Final = "edgetun.dev/agent-token"  # noqa: S105 - a label
DESIRED: Final = "edgetun.dev/desired"
"""Annotation: digest of what was applied. An object that carries another one is applied anew."""
CONFIG: Final = "edgetun.dev/config"
"""Annotation of pods: digest of the ConfigMap, so that a change rolls them."""

OURS: Final = f"{MANAGED_BY}=edgetun-operator"
"""Label selector of everything that the operator has made."""


def exit_labels(pool: str, region: str = "") -> dict[str, str]:
    """Labels of a pool's, or a region's, objects."""
    labels = {
        "app.kubernetes.io/name": "edgetun-exitnode",
        "app.kubernetes.io/component": "exitnode",
        "app.kubernetes.io/part-of": "edgetun",
        MANAGED_BY: "edgetun-operator",
        POOL: pool,
    }
    return labels | {REGION: region} if region else labels


def exit_selector(pool: str, region: str) -> dict[str, str]:
    """What selects the pods of a region. Never changes, since a Deployment's selector cannot."""
    return {"app.kubernetes.io/name": "edgetun-exitnode", POOL: pool, REGION: region}


def owner_reference(kind: Kind, name: str, uid: str) -> Object:
    """Makes the garbage collector remove the object with its owner. Blocks nothing: deletion never waits for the operator."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def is_ours(obj: Mapping[str, Any], owner: Kind, name: str) -> bool:
    """Whether the operator made `obj` for this owner: label and ownerReference say so, of whatever UID.

    An owner that was deleted and made anew has another UID; what was made for the first is then taken over.
    """
    meta = obj["metadata"]
    if (meta.get("labels") or {}).get(MANAGED_BY) != "edgetun-operator":
        return False
    return any(
        reference.get("kind") == owner.kind
        and reference.get("name") == name
        and str(reference.get("apiVersion", "")).partition("/")[0] == owner.group
        for reference in meta.get("ownerReferences") or ()
    )
