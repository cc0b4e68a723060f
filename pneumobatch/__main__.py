"""`python -m pneumobatch` is the command `pneumobatch`."""

from pneumobatch.cli import main

if __name__ == "__main__":
    main()
