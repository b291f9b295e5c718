"""A real Kubernetes node for tests (containerd, kubelet, kube-proxy, CoreDNS, metrics-server) in namespaces of its own. Wants root.

One at a time on a machine: `tests/kube/up.sh` holds a lock for as long as anything of it runs.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from support.cluster import ClusterError, ControlPlane
from support.kube_binaries import Binaries

TOOLS = ("ip", "nsenter", "unshare", "flock", "sysctl", "mount")
NODE_IP = "10.200.0.2"
HOST_IP = "10.200.0.1"


def what_is_missing_for_a_node() -> str | None:
    """Says why a node cannot run here, or None when nothing speaks against it."""
    if sys.platform != "linux":
        return "a Kubernetes node runs on Linux only"
    if os.geteuid() != 0:
        return "a real Kubernetes node wants root (network and mount namespaces); run these tests as root"
    if lost := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"a real Kubernetes node wants {', '.join(lost)} (Debian: iproute2 util-linux procps)"
    return None


class NodeCluster(ControlPlane):
    """A control plane and one node named node1. The host reaches pods, Services and NodePorts; pods reach the host, no further.

    `node_ip` is where NodePorts and hostPorts answer, `host_ip` is this machine as pods see it. Images come from tar files only.
    """

    node_ip = NODE_IP
    host_ip = HOST_IP

    def __init__(self, binaries: Binaries, *, node_wait_s: float = 0) -> None:
        assert binaries.debroot is not None
        super().__init__(binaries, node=True, node_wait_s=node_wait_s)
        self._debroot = binaries.debroot
        try:
            images = " ".join(str(image) for image in binaries.images)
            up = self.script("node-up.sh", self.state, environment=self._node_environment(images), timeout_s=180)
            if up.returncode:
                raise ClusterError(f"the node did not start: {up.stderr.strip()[-3000:]}\n{self.log('kubelet')}")
        except BaseException:
            self.close()
            raise

    def _node_environment(self, images: str = "") -> dict[str, str]:
        # the fixed programs and not the links: containerd and the kubelet start others by these paths inside the node
        return os.environ | {"BIN": str(self.bin), "DEB": str(self._debroot), "IMAGES": images}

    def load_image(self, tar: Path) -> None:
        """Imports a docker-archive into the node's containerd."""
        done = self.script("node-import.sh", self.state, tar, environment=self._node_environment(), timeout_s=300)
        if done.returncode:
            raise ClusterError(f"{tar} was not imported: {done.stderr.strip()[-2000:]}")

    def tag_image(self, name: str, another: str) -> None:
        """Gives an image that the node has another name too."""
        done = self.script("node-tag.sh", self.state, name, another, environment=self._node_environment(), timeout_s=60)
        if done.returncode:
            raise ClusterError(f"{name} was not tagged: {done.stderr.strip()[-2000:]}")
