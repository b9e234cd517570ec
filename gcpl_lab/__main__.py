"""``python -m gcpl_lab`` is the command line."""

from gcpl_lab.cli.app import main

if __name__ == "__main__":
    main()
