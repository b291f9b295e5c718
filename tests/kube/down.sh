#!/bin/bash
# down.sh [STATE_DIR]: stops the node (if any) and what up.sh started, by PID. WIPE=1: at once (SIGKILL), and removes the state folder.
S=$(realpath "${1:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/edgetun-kube}"); here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mine() { # pid program -> true if it runs and is this cluster's: a PID may have been reused, also by another test cluster
  [ -n "$1" ] && [ -e "/proc/$1" ] && tr '\0' ' ' 2>/dev/null < "/proc/$1/cmdline" | grep -q -- "/$2 " && [ "$(readlink "/proc/$1/cwd")" = "$S" ]; }
p=$(cat "$S/pid/up" 2>/dev/null); mine "$p" up.sh && kill -9 "$p"   # it would go on starting what is ended here
[ -e "$S/pid/node" ] && "$here/node-down.sh" "$S"
sig=TERM; [ "${WIPE:-0}" = 1 ] && sig=KILL
for n in kube-scheduler kube-controller-manager kube-apiserver etcd; do
  p=$(cat "$S/pid/$n" 2>/dev/null); mine "$p" $n && kill -$sig "$p"
  [ $n = etcd ] && break
done
for n in kube-scheduler kube-controller-manager kube-apiserver etcd; do
  p=$(cat "$S/pid/$n" 2>/dev/null)
  for _ in $(seq 1 60); do mine "$p" $n || break; sleep 0.05; done
  mine "$p" $n && kill -9 "$p"; rm -f "$S/pid/$n"
done
# what held the lock is dying: when somebody else takes it meanwhile, the network is theirs, and theirs to take down
[ -e "$S/netns" ] && { . "$here/node-net.sh"; NODE_WAIT=10 node_lock 2>/dev/null && node_net_down; rm -f "$S/netns"; }
[ "${WIPE:-0}" = 1 ] && rm -rf "$S"
exit 0
