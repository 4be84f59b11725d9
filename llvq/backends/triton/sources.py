"""Which version of the kernels this is: a digest of their sources.

What launches a kernel, and how it was compiled, must be of one version. So a box carries this
digest, and only the llvq that has it runs its kernels.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from llvq import canonical_json


@cache
def sources_digest() -> str:
    """sha256 over the name and the sha256 of every module of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return hashlib.sha256(canonical_json.dumps(hashes)).hexdigest()
