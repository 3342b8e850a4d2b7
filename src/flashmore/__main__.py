"""`python -m flashmore` and the command `flashmore`."""

from flashmore.cli.process import entry

if __name__ == "__main__":
    entry()
