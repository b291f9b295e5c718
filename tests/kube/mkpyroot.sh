#!/bin/bash
# mkpyroot.sh DIR [PIP_ARG...]: a small Python 3.11 root from Debian 12 packages (no debootstrap, nothing installed on the machine),
# what pip is told to install in its dist-packages. Env: PYTHON (whose pip and compiler are used; 3.11, for the bytecode)
set -euo pipefail
D=$1; shift; PYTHON=${PYTHON:-python3.11}; T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
umask 022; mkdir -p "$D"/{bin,lib,lib64,usr/bin,usr/lib,usr/local/bin,tmp,etc,root,home,proc,sys,dev,run,var}; D=$(realpath "$D"); chmod 1777 "$D/tmp"
(cd "$T"
  apt-get download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1 libnsl2 libtirpc3 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1 media-types netbase tzdata ca-certificates busybox-static >/dev/null 2>err || { cat err >&2; exit 1; }
  for d in *.deb; do dpkg-deb -x "$d" x; done
  cp -a x/usr/. "$D/usr/"; for s in bin lib lib64 etc; do [ -d x/$s ] && cp -a x/$s/. "$D/$s/"; done)
rm -rf "$D"/usr/share/{doc,man,locale,lintian}
ln -sf python3.11 "$D/usr/bin/python3"; ln -sf python3.11 "$D/usr/bin/python"
for a in sh ls cat sleep wget ps env id kill hostname; do ln -sf busybox "$D/bin/$a"; done
ln -sf /bin/busybox "$D/usr/bin/env"
echo 'root:x:0:0:root:/root:/bin/sh' > "$D/etc/passwd"; echo 'root:x:0:' > "$D/etc/group"
mkdir -p "$D/etc/ssl/certs"; cat "$D"/usr/share/ca-certificates/mozilla/*.crt > "$D/etc/ssl/certs/ca-certificates.crt"
L="$D/usr/local/lib/python3.11/dist-packages"; mkdir -p "$L"
[ $# = 0 ] || "$PYTHON" -m pip -q --disable-pip-version-check install --no-compile --target "$L" --python-version 3.11 --only-binary=:all: "$@"
# a read-only root cannot keep bytecode, and an image's files have no times: hash-based bytecode that is never checked
"$PYTHON" -m compileall -q -j 2 --invalidation-mode unchecked-hash -s "$D" "$D/usr/lib/python3.11" "$L" >/dev/null || true
