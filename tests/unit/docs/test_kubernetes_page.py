"""docs/kubernetes.md tells every reason that a condition may have, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from edgetun_core.api.conditions import Reason
from edgetun_core.api.load import parse_resource

PAGE = (Path(__file__).parents[3] / "docs" / "kubernetes.md").read_text()


def test_every_reason_is_told_once() -> None:
    reasons = {value for name, value in vars(Reason).items() if not name.startswith("_")}
    told = re.findall(r"^\| `([A-Za-z]+)` \|", PAGE.partition("## Troubleshooting")[2], re.MULTILINE)
    assert sorted(told) == sorted(set(told))
    assert set(told) == reasons


def _manifests() -> Iterator[dict[str, Any]]:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        for document in yaml.safe_load_all(block):
            if "kind" in document:
                yield document
            else:  # a spec alone, of a pool
                yield {
                    "apiVersion": "edgetun.dev/v1alpha1",
                    "kind": "ExitPool",
                    "metadata": {"name": "fleet"},
                } | document


def test_every_manifest_on_the_page_is_valid() -> None:
    manifests = list(_manifests())
    assert {manifest["kind"] for manifest in manifests} == {"ExitPool", "Tunnel", "AgentToken"}
    for manifest in manifests:
        resource, problems = parse_resource(manifest)
        assert problems == ()
        assert resource is not None


def test_every_link_inside_the_page_leads_somewhere() -> None:
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^###? (.+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
    folder = Path(__file__).parents[3] / "docs"
    assert all((folder / link).exists() for link in re.findall(r"\]\(([^#)]+)\)", PAGE))
