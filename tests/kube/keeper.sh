#!/bin/bash
# keeper.sh STATE_DIR: waits until its standard input ends, which happens when whoever holds the other end closes it or ends,
# however that may be (SIGKILL too), and then takes the cluster down and removes the folder. So nothing outlives a test run.
trap '' INT HUP TERM
cat > /dev/null
WIPE=1 exec "$(dirname "${BASH_SOURCE[0]}")/down.sh" "$1"
