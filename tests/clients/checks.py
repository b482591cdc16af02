"""What the checks of all Python clients share: a line per check, exit 1 on failure."""

import sys
import traceback

MODEL = "nvidia/nemotron-3-super-120b-a12b"

_checks = []


def base_urls():
    """The daemon with its demo model, and the server that follows script.json."""
    return sys.argv[1].rstrip("/"), sys.argv[2].rstrip("/")


def check(function):
    """Registers a check; its docstring is the line that is printed."""
    _checks.append(function)
    return function


def run(client):
    """Runs every check, whatever the others met."""
    failed = 0
    for function in _checks:
        try:
            function()
            print(f"ok     {client}: {function.__doc__}")
        except Exception:
            failed += 1
            print(f"FAILED {client}: {function.__doc__}")
            traceback.print_exc(file=sys.stdout)
    sys.exit(1 if failed else 0)
