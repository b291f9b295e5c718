#!/bin/bash
# node-down.sh [STATE_DIR]: kills the node's PID namespace, removes its cgroups (the network stays until down.sh: without it the API's address would route elsewhere)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd); . "$here/node-net.sh"
S=$(realpath "${1:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/edgetun-kube}")
p=$(cat "$S/pid/node" 2>/dev/null)
if [ -n "$p" ] && tr '\0' ' ' < /proc/$p/cmdline 2>/dev/null | grep -q 'node/init.sh'; then
  c=$(cat /proc/$p/task/$p/children)      # PID 1 of the node's PID namespace: its death ends every process in it
  kill -9 $c $p 2>/dev/null
  for _ in $(seq 1 100); do kill -0 $p 2>/dev/null || break; sleep 0.05; done
fi
rm -f "$S/pid/node"
[ "${WIPE:-0}" = 1 ] || "${BIN:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetun-kube/bin}/kubectl" --kubeconfig="$S/admin.conf" --request-timeout=3s delete node "${NODE_NAME:-node1}" --wait=false >/dev/null 2>&1
for _ in 1 2 3 4 5; do
  find /sys/fs/cgroup/ -depth -type d \( -path '*/kubepods*' -o -path "*/$NODE_NS-system*" \) -exec rmdir {} + 2>/dev/null && break; sleep 0.2
done
rm -rf "$S"/node/var-lib/kubelet/pods
exit 0
