"""``python -m plugq`` is the command line."""

from plugq.cli import main

if __name__ == "__main__":
    main(prog_name="plugq")
