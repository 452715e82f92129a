"""``python -m chronetixd.cli`` is chronetixctl."""

from chronetixd.startpath import forget_start_folder

if __name__ == "__main__":
    forget_start_folder()
    from chronetixd.cli import main

    main()
