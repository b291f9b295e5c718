"""What counts as drift: something that is wanted and not there."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgetun_operator.reconcile.compare import covers

WANTED: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}, "annotations": {}},
    "spec": {
        "replicas": 2,
        "paused": False,
        "containers": [{"name": "exitnode", "args": ["--a", "--b"], "ports": [{"name": "http", "containerPort": 80}]}],
    },
}


def observed() -> dict[str, Any]:
    """The same with what the API server and others add."""
    obj = copy.deepcopy(WANTED)
    del obj["metadata"]["annotations"], obj["spec"]["paused"]
    obj["metadata"]["labels"]["theirs"] = "2"
    obj["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    obj["status"] = {"replicas": 2}
    return obj


def test_what_others_add_is_no_drift() -> None:
    assert covers(observed(), WANTED)
    with_sidecar = observed()
    with_sidecar["spec"]["containers"].insert(0, {"name": "sidecar"})
    assert covers(with_sidecar, WANTED)


def test_a_changed_removed_or_shortened_value_is_drift() -> None:
    for change in (
        lambda obj: obj["spec"].update(replicas=3),
        lambda obj: obj["spec"].pop("replicas"),
        lambda obj: obj["spec"].update(paused=True),
        lambda obj: obj["metadata"]["labels"].pop("a"),
        lambda obj: obj["spec"]["containers"].clear(),
        lambda obj: obj["spec"]["containers"][0].update(name="other"),
        lambda obj: obj["spec"]["containers"][0]["args"].reverse(),
        lambda obj: obj["spec"]["containers"][0]["args"].append("--c"),
        lambda obj: obj["spec"]["containers"][0]["ports"][0].update(containerPort=81),
    ):
        drifted = observed()
        change(drifted)
        assert not covers(drifted, WANTED)


def test_true_is_not_one() -> None:
    assert not covers({"a": True}, {"a": 1})
    assert not covers({"a": 0}, {"a": False})


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(json)
def test_everything_covers_itself(value: Any) -> None:
    assert covers(value, value)
