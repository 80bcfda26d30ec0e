#!/usr/bin/env bash
# torchrun rejects an option of the script that it starts, if that begins like several of torchrun's own.
# Version: torch 2.13.0.
# One would guess: what stands behind the script's name is the script's, whatever it is called.
# What happens: argparse compares every word of the command line with torchrun's options first. A script's --log is
#   "ambiguous" (--log-dir, --logs-specs), --lr is not. A lone -- before the script's name gives all to the script.
# Output seen:
#   torch 2.13.0
#   script.py --lr 1       runs: ['--lr', '1']
#   script.py --log a      exit 2: ambiguous option: --log could match --log-dir, --log_dir, --logs-specs, --logs_specs
#   -- script.py --log a   runs: ['--log', 'a']
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile torch==2.13.0 numpy
echo 'import sys; print("runs:", sys.argv[1:])' > script.py

seen() {
  local code=0 said
  said=$(HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/torchrun --standalone "$@" 2>&1) || code=$?
  if [ "$code" = 0 ]; then grep '^runs:' <<< "$said"; else echo "exit $code: $(grep -o 'ambiguous.*' <<< "$said")"; fi
}

version="torch $(venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')"
plain=$(seen script.py --lr 1)
alike=$(seen script.py --log a)
behind=$(seen -- script.py --log a)
echo "$version"
echo "script.py --lr 1       $plain"
echo "script.py --log a      $alike"
echo "-- script.py --log a   $behind"
wanted="exit 2: ambiguous option: --log could match --log-dir, --log_dir, --logs-specs, --logs_specs"
if [ "$version" != "torch 2.13.0" ] || [ "$plain" != "runs: ['--lr', '1']" ] ||
  [ "$alike" != "$wanted" ] || [ "$behind" != "runs: ['--log', 'a']" ]; then
  echo "the finding no longer holds"
  exit 1
fi
