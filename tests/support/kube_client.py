"""A small synchronous client of the Kubernetes API for tests: what they need, on the standard library alone.

Each call is one connection (a handshake costs 2 ms on loopback), so a client is safe to share between threads and survives
a restart of the API server. In an event loop call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


class ApiError(Exception):
    """What the API server refused: `status`, `reason` ("Invalid", "Forbidden" ...), `message`, and the whole Status object."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.reason = str(body.get("reason", ""))
        self.message = str(body.get("message", ""))
        self.body = dict(body)
        super().__init__(f"{status} {self.reason}: {self.message}")

    @property
    def causes(self) -> list[tuple[str, str]]:
        """(field, message) of each cause, as validation reports them."""
        return [(c.get("field", ""), c.get("message", "")) for c in self.body.get("details", {}).get("causes", [])]


class KubeClient:
    """Talks to one API server as one identity."""

    def __init__(self, server: str, context: ssl.SSLContext, token: str | None = None, timeout_s: float = 30) -> None:
        self.server = server
        self._host = urllib.parse.urlsplit(server).netloc
        self._context = context
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._timeout_s = timeout_s
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    @classmethod
    def from_kubeconfig(cls, path: Path) -> KubeClient:
        """Knows inline certificates and tokens, the two that the harness writes."""
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:  # load_cert_chain takes files only
                for part in ("client-certificate-data", "client-key-data"):
                    pair.write(base64.b64decode(user[part]))
                pair.flush()
                context.load_cert_chain(pair.name)
        return cls(cluster["server"], context, user.get("token"))

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One request, and the status and body of its answer as they are.

        429 is not an answer but a wish to be asked later, as when the watch caches fill after a start; it is met.
        """
        if query:
            path += ("&" if "?" in path else "?") + urllib.parse.urlencode(query)
        end = time.monotonic() + self._timeout_s
        while True:
            status, data = self._send(method, path, body, content_type)
            if status != 429 or time.monotonic() > end:
                return status, data
            time.sleep(0.2)

    def _send(self, method: str, path: str, body: object, content_type: str) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self._host, context=self._context, timeout=self._timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            headers = self._headers | ({"Content-Type": content_type} if data is not None else {})
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """One request for JSON. Raises ApiError for 4xx and 5xx."""
        status, data = self.send(method, path, body, content_type, query)
        try:
            parsed: Object = json.loads(data)
        except ValueError:
            parsed = {"message": data.decode(errors="replace")}
        if status >= 400:
            raise ApiError(status, parsed)
        return parsed

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """Where an object, or (without a name) its collection, stands; asks the API server's discovery once per kind."""
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if (api_version, kind) not in self._plurals:
            for resource in self.request("GET", root)["resources"]:
                if "/" not in resource["name"]:
                    self._plurals[api_version, resource["kind"]] = (resource["name"], resource["namespaced"])
        if (api_version, kind) not in self._plurals:
            raise ApiError(404, {"reason": "NotFound", "message": f"the API server knows no {api_version} {kind}"})
        plural, namespaced = self._plurals[api_version, kind]
        if namespaced and (namespace or name):
            root += f"/namespaces/{namespace or 'default'}"
        return f"{root}/{plural}" + (f"/{name}" if name else "")

    def path_of(self, obj: Mapping[str, Any]) -> str:
        meta = obj["metadata"]
        return self.path(obj["apiVersion"], obj["kind"], meta.get("namespace"), meta["name"])

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none of this name."""
        try:
            return self.request("GET", self.path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list_of(self, api_version: str, kind: str, namespace: str | None = None, **query: str) -> Object:
        """The list object; `["metadata"]["resourceVersion"]` is where a watch may go on. Query: labelSelector="..." etc."""
        return self.request("GET", self.path(api_version, kind, namespace), query=query)

    def create(self, obj: Object, *, dry_run: bool = False, unknown_fields: str = "Strict") -> Object:
        """`unknown_fields`: "Strict" refuses them, "Ignore" drops them."""
        query = {"fieldValidation": unknown_fields} | ({"dryRun": "All"} if dry_run else {})
        return self.request("POST", self.path_of(obj).rpartition("/")[0], obj, query=query)

    def apply(
        self, obj: Object, *, manager: str = "edgetun-tests", dry_run: bool = False, subresource: str = ""
    ) -> Object:
        """Server-side apply, forced. Unknown fields are refused, as `kubectl apply` does it."""
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = self.path_of(obj) + (f"/{subresource}" if subresource else "")
        return self.request("PATCH", path, obj, APPLY, query)

    def apply_all(self, objects: Iterable[Object], **how: Any) -> list[Object]:
        return [self.apply(obj, **how) for obj in objects]

    def patch(self, obj: Mapping[str, Any], patch: Object, subresource: str = "") -> Object:
        """A JSON merge patch of the object that `obj` names."""
        return self.request("PATCH", self.path_of(obj) + (f"/{subresource}" if subresource else ""), patch, MERGE)

    def delete(self, obj: Mapping[str, Any], propagation: str = "Background") -> None:
        """Deletes the object that `obj` names; one that is gone already is fine."""
        try:
            self.request("DELETE", self.path_of(obj), {"propagationPolicy": propagation})
        except ApiError as error:
            if error.status != 404:
                raise

    def watch(self, collection: str, resource_version: str, seconds: int = 1) -> list[Object]:
        """The events of a watch of some seconds. One that is refused at once is one ERROR event, however it was refused."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": str(seconds)}
        status, data = self.send("GET", collection, query=query)
        if status >= 400:
            return [{"type": "ERROR", "object": json.loads(data)}]
        return [json.loads(line) for line in data.splitlines() if line]
