#!/bin/sh
for word in "$@"; do echo "<$word>"; done
echo "$GREETING $EVPIPE_STEP $EVPIPE_ATTEMPT"
exit 3
