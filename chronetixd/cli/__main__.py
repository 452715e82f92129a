"""``python -m chronetixd.cli`` is chronetixctl."""

from chronetixd.cli import main

main()
