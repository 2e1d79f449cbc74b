"""`python -m anybatch`, which torchrun needs."""

from anybatch.cli.main import main

if __name__ == "__main__":
    main()
