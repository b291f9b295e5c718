#!/bin/bash
# down.sh [STATE_DIR]: stops the node (if any) and what up.sh started, by PID. WIPE=1: at once (SIGKILL), and removes the state folder.
S=$(realpath "${1:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/edgetun-kube}"); here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mine() { # pid program -> true if it runs and is this cluster's: a PID may have been reused, also by another test cluster
  [ -n "$1" ] && [ -e "/proc/$1" ] && tr '\0' ' ' 2>/dev/null < "/proc/$1/cmdline" | grep -q -- "/$2 " && [ "$(readlink "/proc/$1/cwd")" = "$S" ]; }
stat_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null; }   # state ppid ... : the fields after the name
born() { stat_of "$1" | cut -d' ' -f20; }
ended() { # pid born -> true once it holds nothing more. A killed process loses its command line and folder (see mine) before its threads are gone.
  local st; st=$(stat_of "$1") && [ -n "$st" ] || return 0
  [ "$(cut -d' ' -f20 <<< "$st")" = "$2" ] || return 0
  [ "${st%% *}" = Z ] && [ "$(ls "/proc/$1/task" 2>/dev/null | wc -l)" -le 1 ]; }
p=$(cat "$S/pid/up" 2>/dev/null); mine "$p" up.sh && kill -9 "$p"   # it would go on starting what is ended here
[ -e "$S/pid/node" ] && "$here/node-down.sh" "$S"
sig=TERM; [ "${WIPE:-0}" = 1 ] && sig=KILL
declare -A since
for n in kube-scheduler kube-controller-manager kube-apiserver etcd; do
  p=$(cat "$S/pid/$n" 2>/dev/null); mine "$p" $n && { since[$n]=$(born "$p"); kill -$sig "$p"; }
  [ $n = etcd ] && break
done
for n in kube-scheduler kube-controller-manager kube-apiserver etcd; do
  p=$(cat "$S/pid/$n" 2>/dev/null)
  if [ "$sig" != KILL ]; then
    for _ in $(seq 1 60); do mine "$p" $n || break; sleep 0.05; done
    mine "$p" $n && { since[$n]=$(born "$p"); kill -9 "$p"; }
  fi
  [ -z "${since[$n]:-}" ] || for _ in $(seq 1 600); do ended "$p" "${since[$n]}" && break; sleep 0.05; done
  rm -f "$S/pid/$n"
done
# what held the lock is dying: when somebody else takes it meanwhile, the network is theirs, and theirs to take down
[ -e "$S/netns" ] && { . "$here/node-net.sh"; NODE_WAIT=10 node_lock 2>/dev/null && node_net_down; rm -f "$S/netns"; }
[ "${WIPE:-0}" = 1 ] && rm -rf "$S"
exit 0
