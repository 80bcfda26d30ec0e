#!/usr/bin/env bash
# A small message that a process sends with gloo stays in it until the receiver has asked for it, and dies with the process.
# Version: torch 2.13.0.
# One would guess: four bytes leave at once, as with MPI, whose small messages are sent eagerly; a second later they are safe.
# What happens: gloo's TCP transport announces a message and writes it once the other side has posted a receive. If the sender ends
#   before, the receive fails, however long ago isend returned and however small the tensor is. With the receive posted in advance
#   the message arrives. is_completed() of the sender's work says False in both cases, so it does not tell them apart.
# Output seen:
#   torch 2.13.0
#   receive posted afterwards   sender: completed False  receiver: error
#   receive posted in advance   sender: completed False  receiver: 7.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile torch==2.13.0 numpy
cat > script.py <<'EOF'
import os
import sys
import time
import torch
import torch.distributed as dist

rank, kind = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/{kind}", rank=rank, world_size=2)
x = torch.full((1,), 7.0 * rank)
work = dist.irecv(x, 1) if rank == 0 and kind == "advance" else None
dist.barrier()
if rank == 1:
    work = dist.isend(x, 0)
    time.sleep(1)
    print("sender: completed", work.is_completed(), flush=True)
    os._exit(0)
time.sleep(3)
try:
    (work or dist.irecv(x, 1)).wait()
    print("receiver:", x.item(), flush=True)
except RuntimeError:
    print("receiver: error", flush=True)
os._exit(0)
EOF
seen() {
  for rank in 0 1; do
    OMP_NUM_THREADS=1 venv/bin/python script.py "$rank" "$1" 2>/dev/null &
  done | paste -sd ' ' | sed 's/ receiver/  receiver/'
}

version="torch $(venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')"
late=$(seen afterwards)
early=$(seen advance)
echo "$version"
echo "receive posted afterwards   $late"
echo "receive posted in advance   $early"
if [ "$version" != "torch 2.13.0" ] || [ "$late" != "sender: completed False  receiver: error" ] ||
  [ "$early" != "sender: completed False  receiver: 7.0" ]; then
  echo "the finding no longer holds"
  exit 1
fi
