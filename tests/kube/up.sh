#!/bin/bash
# up.sh [STATE_DIR]: etcd + kube-apiserver + kube-controller-manager + kube-scheduler. What already runs in STATE_DIR is left
# alone and what died is started again, so it also serves to restart one of them.
# Env: BIN (folder with the binaries), ADDR (127.0.0.1),
#      PORTS="api etcd etcd-peer controllers scheduler" or BASE (first of five in a row, 16443), SCHED=0/KCM=0 to leave one out,
#      NODE=1: make the netns/veth for a real node first and serve on the veth's host address. NODE_WAIT: seconds to wait for another's node to go.
# Prints: KUBECONFIG=<file>. Exit status 75: somebody else has a node on this machine.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/edgetun-kube}"; S=$(realpath "${1:-${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/edgetun-kube}"); BIN=${BIN:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetun-kube/bin}; BASE=${BASE:-16443}; ADDR=${ADDR:-127.0.0.1}
read -r API_PORT ETCD_PORT PEER_PORT KCM_PORT SCHED_PORT <<< "${PORTS:-$BASE $((BASE+1)) $((BASE+2)) $((BASE+3)) $((BASE+4))}"
SVC_CIDR=${SVC_CIDR:-10.96.0.0/16}; POD_CIDR=${POD_CIDR:-10.244.0.0/16}; SVC_IP1=${SVC_IP1:-10.96.0.1}
mkdir -p "$S"/{pki,log,pid,etcd}; chmod 700 "$S"; cd "$S"
echo $$ > pid/up; trap 'rm -f "$S/pid/up"' EXIT
alive() { # name -> true if what pid/name tells runs and is that program of this cluster (a PID may have been reused)
  local p; p=$(cat "pid/$1" 2>/dev/null) && [ -n "$p" ] && tr '\0' ' ' 2>/dev/null < "/proc/$p/cmdline" | grep -q -- "/$1 " && [ "$(readlink "/proc/$p/cwd")" = "$S" ]; }
if [ "${NODE:-0}" = 1 ]; then
  . "$here/node-net.sh"; ADDR=$HOST_IP
  if ! { [ -e netns ] && alive etcd; }; then   # otherwise what already runs here holds the lock and uses the network
    node_lock || exit 75
    touch netns; node_net_down; node_net_up    # whose network it was is gone, but its addresses and rules may still be there
  fi
fi

# ---- certificates (EC P-256; about 0.3 s in all)
ca() { # name CN
  [ -s pki/$1.crt ] && return
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature \
    -keyout pki/$1.key -out pki/$1.crt 2>/dev/null; }
cert() { # name ca subject usage san
  [ -s pki/$1.crt ] && return
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout pki/$1.key -out pki/$1.csr 2>/dev/null
  { echo "keyUsage=critical,digitalSignature,keyEncipherment"; echo "extendedKeyUsage=$4"; [ -n "${5:-}" ] && echo "subjectAltName=$5"; } > pki/$1.ext
  openssl x509 -req -in pki/$1.csr -CA pki/$2.crt -CAkey pki/$2.key -set_serial 0x$(openssl rand -hex 12) -days 3650 -extfile pki/$1.ext -out pki/$1.crt 2>/dev/null; }
umask 077
ca ca kubernetes-ca; ca front-proxy-ca front-proxy-ca
SAN="DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$SVC_IP1"
[ "$ADDR" = 127.0.0.1 ] || SAN="$SAN,IP:$ADDR"
cert apiserver ca /CN=kube-apiserver serverAuth "$SAN" &
cert apiserver-kubelet-client ca "/O=system:masters/CN=kube-apiserver-kubelet-client" clientAuth &
cert front-proxy-client front-proxy-ca /CN=front-proxy-client clientAuth &
cert admin ca "/O=system:masters/CN=admin" clientAuth &
cert kcm ca /CN=system:kube-controller-manager clientAuth &
cert scheduler ca /CN=system:kube-scheduler clientAuth &
[ -s pki/sa.key ] || { openssl genrsa -out pki/sa.key 2048 2>/dev/null; openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null; }
wait
URL=https://$ADDR:$API_PORT
kc() { # file cert
  cat > "$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$URL", certificate-authority-data: $(base64 -w0 pki/ca.crt)}}]
users: [{name: u, user: {client-certificate-data: $(base64 -w0 pki/$2.crt), client-key-data: $(base64 -w0 pki/$2.key)}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
Y
}
kc admin.conf admin; kc kcm.conf kcm; kc scheduler.conf scheduler

start() { # name command...
  local n=$1; shift; alive "$n" && return
  setsid nohup "$@" >> log/$n.log 2>&1 < /dev/null & echo $! > pid/$n; }
E=http://127.0.0.1:$ETCD_PORT
start etcd "$BIN/etcd" --name n1 --data-dir etcd --listen-client-urls $E --advertise-client-urls $E \
  --listen-peer-urls http://127.0.0.1:$PEER_PORT --initial-advertise-peer-urls http://127.0.0.1:$PEER_PORT --initial-cluster n1=http://127.0.0.1:$PEER_PORT \
  --unsafe-no-fsync --log-level warn ${ETCD_ARGS:-}
REC=lease ADV=$ADDR; [ "$ADDR" = 127.0.0.1 ] && REC=none   # loopback is no valid Endpoints address
start kube-apiserver "$BIN/kube-apiserver" --etcd-servers=$E --bind-address=$ADDR --advertise-address=$ADV --endpoint-reconciler-type=$REC --secure-port=$API_PORT \
  --service-cluster-ip-range=$SVC_CIDR --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
  --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --kubelet-client-certificate=pki/apiserver-kubelet-client.crt --kubelet-client-key=pki/apiserver-kubelet-client.key --kubelet-certificate-authority=pki/ca.crt \
  --kubelet-preferred-address-types=InternalIP \
  --requestheader-client-ca-file=pki/front-proxy-ca.crt --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
  --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
  --proxy-client-cert-file=pki/front-proxy-client.crt --proxy-client-key-file=pki/front-proxy-client.key \
  --profiling=false --shutdown-delay-duration=0s ${APISERVER_ARGS:-}
[ "${KCM:-1}" = 0 ] || start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig=kcm.conf --authentication-kubeconfig=kcm.conf --authorization-kubeconfig=kcm.conf \
  --bind-address=127.0.0.1 --secure-port=$KCM_PORT --cert-dir=pki/kcm --leader-elect=false --use-service-account-credentials \
  --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key \
  --requestheader-client-ca-file=pki/front-proxy-ca.crt --allocate-node-cidrs --cluster-cidr=$POD_CIDR --service-cluster-ip-range=$SVC_CIDR \
  --enable-hostpath-provisioner --kube-api-qps=200 --kube-api-burst=400 --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-downscale-stabilization=15s \
  --horizontal-pod-autoscaler-initial-readiness-delay=5s --horizontal-pod-autoscaler-cpu-initialization-period=15s --profiling=false ${KCM_ARGS:-}
[ "${SCHED:-1}" = 0 ] || start kube-scheduler "$BIN/kube-scheduler" --kubeconfig=scheduler.conf --authentication-kubeconfig=scheduler.conf --authorization-kubeconfig=scheduler.conf \
  --bind-address=127.0.0.1 --secure-port=$SCHED_PORT --cert-dir=pki/sched --leader-elect=false --kube-api-qps=200 --kube-api-burst=400 --profiling=false
ended() { echo "$1 ended:" >&2; tail -5 "log/$1.log" >&2; exit 1; }
running() { for n in "$@"; do kill -0 "$(cat pid/$n)" 2>/dev/null || ended $n; done; }
for _ in $(seq 1 1200); do
  if [ "$(curl -s --max-time 2 --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key $URL/readyz || true)" = ok ]; then ok=1; break; fi
  running etcd kube-apiserver; sleep 0.1
done
[ "${ok:-}" = 1 ] || { echo "apiserver not ready" >&2; tail -5 log/kube-apiserver.log >&2; exit 1; }
# ready to use: the default service account exists (pods can be created)
if [ "${KCM:-1}" != 0 ]; then
  for _ in $(seq 1 600); do
    curl -sf --max-time 2 -o /dev/null --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key $URL/api/v1/namespaces/default/serviceaccounts/default && sa=1 && break
    running kube-controller-manager; sleep 0.1
  done
  [ "${sa:-}" = 1 ] || { echo "no default service account" >&2; tail -5 log/kube-controller-manager.log >&2; exit 1; }
fi
# another process on one of the ports may have answered for one that could not bind it
alive etcd || ended etcd; alive kube-apiserver || ended kube-apiserver
[ "${KCM:-1}" = 0 ] || alive kube-controller-manager || ended kube-controller-manager
[ "${SCHED:-1}" = 0 ] || alive kube-scheduler || ended kube-scheduler
echo "KUBECONFIG=$S/admin.conf"
