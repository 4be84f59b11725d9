"""LoRAs merged into the weights of a denoiser, a few rows at a time, before they are quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from llvq.checkpoints.checkpoint import Checkpoint
from llvq.checkpoints.lora import Lora, listed
from llvq.checkpoints.lora_names import GROUP
from llvq.checkpoints.source import open_tensors
from llvq.errors import CheckpointError
from llvq.models.config import DitConfig
from llvq.sources import PackedWeight, TensorSource, TensorSpec

MERGED_FORMATS = ("longlive_generator_merged_lora", "longlive_generator_merged_bf16")


class MergedSource:
    """A TensorSource: W + scale * B @ A, summed in fp32 and rounded once to W's dtype."""

    def __init__(self, base: TensorSource, loras: Sequence[Lora]) -> None:
        self._base = base
        self._loras: dict[str, list[Lora]] = {}
        for lora in loras:
            for weight in lora.layers:
                self._loras.setdefault(weight, []).append(lora)

    def names(self) -> Sequence[str]:
        return self._base.names()

    def spec(self, name: str) -> TensorSpec:
        return self._base.spec(name)

    def read(self, name: str) -> Tensor:
        if name not in self._loras:
            return self._base.read(name)
        return self.read_rows(name, 0, self.spec(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        rows = self._base.read_rows(name, start, stop)
        if name not in self._loras:
            return rows
        total = rows.float()
        for lora in self._loras[name]:
            a, b = lora.layers[name]
            up = lora.tensors.read_rows(b, start, stop).float()
            total += lora.scale * (up @ lora.tensors.read(a).float())
        return total.to(rows.dtype)

    def packed(self, name: str) -> PackedWeight | None:
        return None if name in self._loras else self._base.packed(name)


def merge(dit: Checkpoint[DitConfig], path: Path, loras: Sequence[Lora]) -> Checkpoint[DitConfig]:
    """The denoiser that was read from `path` with the LoRAs merged in.

    Raises CheckpointError if one does not fit it, is merged already, or if the file has a LoRA of
    its own and it is not said what shall become of it.
    """
    opened = open_tensors(path)
    _check_own(opened.names(), path, loras)
    if not loras:
        return dit
    if why := _merged_already(opened.metadata):
        raise CheckpointError(
            f"a LoRA is already merged into {path.name}",
            where=str(path),
            because=f"the file says {why}",
            fix="leave out --lora, or name the model without it and every LoRA with --lora",
        )
    for number, lora in enumerate(loras):
        _check_fits(lora, dit.tensors)
        if twin := next((o for o in loras[:number] if o.sha256 == lora.sha256), None):
            raise CheckpointError(
                "one LoRA would be merged twice",
                where=f"{twin.path} and {lora.path}",
                because=f"both have the same tensors, sha256 {lora.sha256[:16]}",
                fix="give it once; to make it stronger, raise --lora-alpha",
            )
    notes = (*dit.notes, *(note for lora in loras for note in lora.notes))
    return replace(dit, tensors=MergedSource(dit.tensors, loras), notes=notes)


def _check_own(names: Sequence[str], path: Path, loras: Sequence[Lora]) -> None:
    if not any(name.startswith(f"{GROUP}.") for name in names):
        return
    if any(lora.path.resolve() == path.resolve() for lora in loras):
        return
    raise CheckpointError(
        f"{path.name} has a model and a LoRA that is not merged into it",
        where=str(path),
        because="the model was trained with it, and neither with nor without goes without saying",
        fix=f"merge it: --lora {path}; or save the model alone: "
        "torch.save({'generator': checkpoint['generator']}, 'base.pt')",
    )


def _merged_already(metadata: Mapping[str, object]) -> str | None:
    """The words in which a file says that a LoRA is merged into it."""
    if "merged_lora" in metadata:
        said = metadata["merged_lora"]
        return None if str(said).lower() in ("false", "0", "none", "") else f"merged_lora = {said}"
    if metadata.get("source_lora_ckpt") not in (None, "", "None"):
        return f"source_lora_ckpt = {str(metadata['source_lora_ckpt'])[:120]}"
    stated = metadata.get("checkpoint_format")
    return f"checkpoint_format = {stated}" if stated in MERGED_FORMATS else None


def _check_fits(lora: Lora, base: TensorSource) -> None:
    names = set(base.names())
    problems = []
    for weight, (a, b) in lora.layers.items():
        if weight not in names or len(base.spec(weight).shape) != 2:
            problems.append(f"{a} is for {weight}, and the model has no such linear")
            continue
        rows, columns = base.spec(weight).shape
        if (found := (lora.tensors.spec(b).shape[0], lora.tensors.spec(a).shape[1])) != (
            rows,
            columns,
        ):
            problems.append(f"{weight} is {[rows, columns]}, B @ A is {list(found)}")
        elif base.packed(weight) is not None:
            problems.append(f"{weight} is packed in NVFP4, and would have to be quantized again")
    if problems:
        raise CheckpointError(
            f"{lora.path.name} does not fit the model",
            where=str(lora.path),
            because=listed(problems),
            fix="name the BF16 model that it was trained on, and the LoRA of its generator",
        )
