"""`python -m llvq` is `llvq`."""

from __future__ import annotations

from llvq.cli.main import main

if __name__ == "__main__":
    main()
