#!/usr/bin/env bash
# Processes that torchrun starts again find in the job's store what their dead predecessors wrote.
# Version: torch 2.13.0.
# One would guess: a restart begins with an empty store. torch/distributed/rendezvous.py says so where env:// connects: a new
#   TCPStore is made for every retry, so attempts need no prefix.
# What happens: torchrun's agent keeps one store for all of its restarts, with either rendezvous back end. A counter goes on
#   where it was, and work that was shared out with store.add stays claimed by processes that are gone.
# Output seen:
#   torch 2.13.0
#   standalone  start 0: the key counts 1  start 1: the key counts 2
#   static      start 0: the key counts 1  start 1: the key counts 2
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile torch==2.13.0 numpy
cat > script.py <<'EOF'
import os
import sys
from torch.distributed.rendezvous import rendezvous

store, _, _ = next(rendezvous("env://"))
start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print(f"start {start}: the key counts {store.add('key', 1)}", flush=True)
sys.exit(1 if start == 0 else 0)
EOF

seen() {
  HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 \
    venv/bin/torchrun "$@" --max-restarts 1 --monitor-interval 0.1 script.py 2>/dev/null | paste -sd ' ' | sed 's/ start/  start/'
}

version="torch $(venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')"
alone=$(seen --standalone)
static=$(seen --nnodes 1 --rdzv-backend static --master-port 29611)
echo "$version"
echo "standalone  $alone"
echo "static      $static"
wanted="start 0: the key counts 1  start 1: the key counts 2"
if [ "$version" != "torch 2.13.0" ] || [ "$alone" != "$wanted" ] || [ "$static" != "$wanted" ]; then
  echo "the finding no longer holds"
  exit 1
fi
