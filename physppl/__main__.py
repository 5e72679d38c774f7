"""Entry point of `python -m physppl`, the same as the command `physppl`."""

from physppl.cli import main

if __name__ == "__main__":
    main()
