"""What of a program goes into a box: everything, or everything but the text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llvq import graphs
from llvq.artifact import Box
from llvq.errors import ArtifactError, RecipeError
from llvq.runtime.embedder import ENCODER, TOKENIZER, encoder_identity


@dataclass(frozen=True)
class Parts:
    """`files`: weights and tokenizer, as they are. `fields`: those of the manifest, with stages."""

    files: tuple[str, ...]
    fields: Mapping[str, Any]


def all_parts(program: Box) -> Parts:
    fields = {k: v for k, v in program.manifest.items() if k not in ("format", "files")}
    names = program.manifest["files"]
    return Parts(tuple(n for n in names if n.startswith(("weights/", "tokenizer/"))), fields)


def without_text_encoder(program: Box) -> Parts:
    """All parts without the stage `encode_text` and its weights; its identity stays.

    Raises RecipeError if there is no encoder, or no tokenizer to look prompts up with;
    ArtifactError if its weights are in a file with others.
    """
    _check_encoder(program)
    whole = all_parts(program)
    rest = {name: v for name, v in whole.fields["stages"].items() if name != ENCODER}
    documents = {name: program.graph(name) for name in rest}
    kept = set().union(*(graphs.weights_used(document) for document in documents.values()))
    gone = graphs.weights_used(program.graph(ENCODER)) - kept
    files = program.weight_files(gone)
    if mixed := sorted(set(files) & set(program.weight_files(kept))):
        raise ArtifactError(
            f"{mixed[0]} holds weights of the text encoder and others",
            where=str(program.path),
            because="files are left out as a whole, and an older llvq wrote this program",
            fix="write it again: llvq quantize",
        )
    ops = set().union(*(graphs.ops_used(document) for document in documents.values()))
    fields = whole.fields
    return Parts(
        tuple(name for name in whole.files if name not in files),
        {
            **fields,
            "stages": rest,
            "contract": {name: fields["contract"][name] for name in rest},
            "ops": {name: schema for name, schema in fields["ops"].items() if name in ops},
            "weights": {n: v for n, v in fields["weights"].items() if n not in gone},
            "left_out": {ENCODER: encoder_identity(program)},
        },
    )


def _check_encoder(program: Box) -> None:
    if ENCODER not in program.manifest["stages"]:
        raise RecipeError(
            "there is no text encoder to leave out",
            where=str(program.path),
            because="none was found when the model was quantized",
            fix="leave out --no-text-encoder",
        )
    if TOKENIZER not in program.manifest["files"]:
        raise RecipeError(
            "without a tokenizer the text encoder is not left out",
            where=str(program.path),
            because="cached embeddings are found by the tokens of a prompt",
            fix="quantize again with --tokenizer",
        )
