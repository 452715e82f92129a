"""``python -m chronetixd`` runs the command ``chronetixd``."""

from chronetixd.startpath import forget_start_folder

if __name__ == "__main__":
    forget_start_folder()
    from chronetixd.main import main

    main(prog_name="chronetixd")
