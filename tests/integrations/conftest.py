"""What needs a trainer is left alone where there is none."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("transformers") else ["trainers.py"]
