"""The box: everything a deployment needs in one folder, and nothing it has to trust.

    name.llvq/
      manifest.json      what it is, for whom, and the sha256 of every file; canonical JSON
      manifest.sha256    the sha256 of the manifest (`sha256sum -c`), which is the artifact id
      graphs/*.json      stage graphs (llvq.graphs), no weights
      weights/*.safetensors
      checks/*.safetensors   vectors that `llvq verify` replays
      tokenizer/ kernels/    optional
      report/            for people; not hashed, never read by the runtime

Same inputs, same bytes, same id: no time, no absolute path, no host name. How the format may
change: a field is never reused with another meaning; a new field or a new meaning is a new
FORMAT_VERSION.
"""

from llvq.artifact.manifest import FORMAT_VERSION
from llvq.artifact.read import Box, open_box
from llvq.artifact.write import BoxWriter

__all__ = ["FORMAT_VERSION", "Box", "BoxWriter", "open_box"]
