# sourced: one network namespace for the node, one veth pair to the host; nothing else on the host changes
NODE_NS=${NODE_NS:-k8sn}; HOST_IP=${HOST_IP:-10.200.0.1}; NODE_IP=${NODE_IP:-10.200.0.2}
POD_CIDR=${POD_CIDR:-10.244.0.0/16}; SVC_CIDR=${SVC_CIDR:-10.96.0.0/16}
NODE_LOCK=${NODE_LOCK:-/run/lock/edgetun-node.lock}
# One node at a time on a machine: the addresses above and the cgroup /kubepods are the machine's. The lock is on a descriptor
# that everything started afterwards inherits, so the kernel frees it when the last of them ended, however that happened.
node_lock() {
  mkdir -p "$(dirname "$NODE_LOCK")"; exec 9>"$NODE_LOCK"
  flock -w "${NODE_WAIT:-0}" 9 || { echo "another node runs on this machine ($NODE_LOCK is locked): one at a time" >&2; return 1; }
  [ -z "$(ip netns pids "$NODE_NS" 2>/dev/null)" ] || { echo "the network namespace $NODE_NS is in use, though not by these scripts: one node at a time" >&2; return 1; }
}
node_net_up() {
  ip netns list | grep -qw "$NODE_NS" && return 0
  ip netns add "$NODE_NS"
  ip link add "${NODE_NS}-h" type veth peer name eth0 netns "$NODE_NS"
  ip addr add "$HOST_IP/30" dev "${NODE_NS}-h"; ip link set "${NODE_NS}-h" up
  ip -n "$NODE_NS" link set lo up
  ip -n "$NODE_NS" addr add "$NODE_IP/30" dev eth0; ip -n "$NODE_NS" link set eth0 up
  ip -n "$NODE_NS" route add default via "$HOST_IP"      # the host does not forward: pods reach the host, not the internet
  ip route add "$POD_CIDR" via "$NODE_IP"; ip route add "$SVC_CIDR" via "$NODE_IP"
  nsenter --net=/run/netns/"$NODE_NS" sysctl -qw net.ipv4.ip_forward=1
}
node_net_down() { ip netns del "$NODE_NS" 2>/dev/null || true; ip link del "${NODE_NS}-h" 2>/dev/null || true; }
