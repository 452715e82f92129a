"""``python -m chronetixctl`` runs chronetixctl."""

from chronetixd.startpath import forget_start_folder

if __name__ == "__main__":
    forget_start_folder()
    from chronetixctl import main

    main()
