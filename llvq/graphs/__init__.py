"""Stage graphs as data: a `torch.fx.GraphModule` to and from plain JSON.

`torch.export.save` takes seconds to load a 5B graph, wants a re-export for each stage, keeps device
literals and can hold pickles. A graph here is a list of nodes and nothing else: placeholders,
weights by name, operators by name, one output. Whoever loads it executes no code of the file: names
are checked before they reach the Python source that FX generates, and an operator that is not of
`aten`, `llvq` or a short list of `operator` functions is refused before anything is built.

A loaded graph takes its placeholders by position or by name, flat, and returns the tree that the
exported module returned.
"""

from llvq.graphs.ops import installed_schemas, schema
from llvq.graphs.read import (
    attach,
    check_weights,
    load,
    ops_used,
    signature,
    weights,
    weights_used,
)
from llvq.graphs.text import text
from llvq.graphs.write import digest, digest_all, dump, module_path, source_line, weight

__all__ = [
    "attach",
    "check_weights",
    "digest",
    "digest_all",
    "dump",
    "installed_schemas",
    "load",
    "module_path",
    "ops_used",
    "schema",
    "signature",
    "source_line",
    "text",
    "weight",
    "weights",
    "weights_used",
]
