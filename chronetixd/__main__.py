"""``python -m chronetixd`` is the command ``chronetixd``."""

from chronetixd.main import main

if __name__ == "__main__":
    main(prog_name="chronetixd")
