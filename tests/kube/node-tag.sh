#!/bin/bash
# node-tag.sh STATE_DIR IMAGE NEW_NAME: gives an image that the node has another name too
S=$(realpath "$1"); DEB=${DEB:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetun-kube/debroot}
p=$(cat "$S/pid/node"); c=$(cat /proc/$p/task/$p/children); c=${c%% *}
nsenter -t "$c" --mount --pid -- "$DEB/usr/bin/ctr" -n k8s.io images tag --force "$2" "$3"
