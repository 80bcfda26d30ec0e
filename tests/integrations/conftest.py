"""What needs a trainer is left alone where there is none."""

from importlib.util import find_spec

HELPERS = {
    "trainers.py": "transformers",
    "vocabulary.py": "transformers",
    "modules.py": "lightning",
}
collect_ignore = [file for file, package in HELPERS.items() if not find_spec(package)]
