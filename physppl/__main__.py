"""`python -m physppl` is the command `physppl`."""

from physppl.cli import main

if __name__ == "__main__":
    main()
