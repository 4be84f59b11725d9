"""`python -m llvq` is `llvq`."""

from llvq.cli.main import main

if __name__ == "__main__":
    main()
