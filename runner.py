"""The command people type: ``python runner.py attention --timed``."""

import sys

if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0])

from dojo.cli import main

if __name__ == "__main__":
    sys.exit(main())
