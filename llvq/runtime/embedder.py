"""Prompts to embeddings: out of the cache, else by the text encoder, which is loaded when needed.

The text encoder is as large as the rest of a box, and a video needs it once per prompt. So it is
loaded apart from the other stages, for the first prompt that no cache has, and given back after.
"""

from __future__ import annotations

import gc
import hashlib
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llvq import canonical_json, graphs
from llvq.artifact import Box
from llvq.errors import SessionError
from llvq.runtime.device import TARGET_DEVICES
from llvq.runtime.executable import CompiledStage, RunFacts
from llvq.runtime.load import executable
from llvq.runtime.prompt_cache import DamagedEntry, PromptCache
from llvq.runtime.prompts import PromptTokens

ENCODER = "encode_text"
TOKENIZER = "tokenizer/tokenizer.json"


def encoder_identity(box: Box) -> str | None:
    """sha256 over the graph of the text encoder, its weight files and the tokenizer.

    It is the same for every target and every denoiser. A box whose encoder was left out remembers
    it; None for a box whose model never had one.
    """
    manifest = box.manifest
    if ENCODER in manifest["left_out"]:
        return str(manifest["left_out"][ENCODER])
    if ENCODER not in manifest["stages"]:
        return None
    graph = graphs.load(box.graph(ENCODER), device="meta")
    for node in graph.graph.nodes:
        node.meta.pop("custom", None)  # names the kernels of the target
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    parts = {
        "graph": graphs.digest(graph),
        "weights": [hashes[name] for name in box.weight_files(graphs.weights(graph))],
        "tokenizer": hashes.get(TOKENIZER),
    }
    return hashlib.sha256(canonical_json.dumps(parts)).hexdigest()


class Embedder:
    """Embeds the prompts of an open box, on the device of its target. May be shared by threads.

    `cache`: a folder for embeddings; None for no cache. `low_memory`: as of `executable`. `encoded`
    counts runs of the encoder, and `damaged` has the entries of the cache that it replaced.
    """

    def __init__(
        self, box: Box, cache: str | Path | None = None, *, low_memory: bool = False
    ) -> None:
        self.box, self.low_memory = box, low_memory
        self.device = TARGET_DEVICES[box.manifest["target"]]
        self.facts = RunFacts.from_dict(box.manifest["state"])
        self.identity = encoder_identity(box)
        self.encoded = 0
        self.damaged: list[DamagedEntry] = []
        self._cache: PromptCache | None = None
        if cache is not None and self.identity is not None:
            self._cache = PromptCache(cache, self.identity, self.facts)
        self._encoder: CompiledStage | None = None
        self._lock = threading.Lock()

    def embed(self, tokens: Mapping[str, PromptTokens]) -> dict[str, Tensor]:
        """prompt_embeds [1, text_len, text_dim] of each prompt, and into the cache what is new.

        Raises SessionError for prompts that are not cached, if the box has no encoder, or the
        DamagedEntry that stands for one of them; OutputError if the cache cannot be written.
        """
        with self._lock:
            found = {prompt: self._cached(item) for prompt, item in tokens.items()}
            missing = [prompt for prompt, embeds in found.items() if embeds is None]
            if missing:
                self._check_encoder(missing)
            made = {prompt: self._encode(tokens[prompt]) for prompt in missing}
            have = {prompt: embeds for prompt, embeds in found.items() if embeds is not None}
        return {prompt: embeds.to(self.device) for prompt, embeds in (have | made).items()}

    def release(self) -> None:
        """Give the memory of the encoder back. It is loaded again if it is needed again."""
        with self._lock:
            self._encoder = None
        gc.collect()  # a graph and its nodes refer to each other

    def _cached(self, tokens: PromptTokens) -> Tensor | None:
        if self._cache is None:
            return None
        try:
            return self._cache.get(tokens)
        except DamagedEntry as error:
            if ENCODER not in self.box.manifest["stages"]:
                raise
            self.damaged.append(error)
            return None

    def _encode(self, tokens: PromptTokens) -> Tensor:
        if self._encoder is None:
            model = executable(self.box, self.device, stages=(ENCODER,), low_memory=self.low_memory)
            self._encoder = model.stage(ENCODER)
        inputs = {"ids": tokens.ids.to(self.device), "mask": tokens.mask.to(self.device)}
        embeds = self._encoder(inputs)["prompt_embeds"]
        self.encoded += 1
        if self._cache is not None:
            self._cache.put(tokens, embeds)
        return embeds

    def _check_encoder(self, missing: list[str]) -> None:
        manifest = self.box.manifest
        if ENCODER in manifest["stages"]:
            if self._cache is not None:
                self._cache.check_writable()
            return
        if ENCODER not in manifest["left_out"]:
            raise SessionError(
                "this box has no text encoder",
                where=str(self.box.path),
                because="none was found when the model was quantized",
                fix="quantize again with --text-encoder, or pass embeddings (--embeds)",
            )
        raise self._not_cached(missing)

    def _not_cached(self, missing: list[str]) -> SessionError:
        folder = self._cache.folder if self._cache else None
        what = f"{missing[0][:60]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        return SessionError(
            f"no embedding of {what} is in the prompt cache"
            if folder
            else "this box has no text encoder, and no prompt cache was given",
            where=str(folder or self.box.path),
            because=f"the box was exported with --no-text-encoder (encoder {self.identity})",
            fix="with a box that has this encoder: llvq encode BOX --prompt "
            f"{shlex.quote(missing[0])} --prompt-cache {shlex.quote(str(folder or 'DIR'))}"
            + ("" if folder else ", then add --prompt-cache DIR here"),
        )
