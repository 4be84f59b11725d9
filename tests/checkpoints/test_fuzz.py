"""Mutated files of every layout, through every reader: LlvqError or a checkpoint, nothing else.

Nothing may hang, and no declared size may be believed: memory is bounded for all of this file.
"""

from __future__ import annotations

import json
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llvq.checkpoints.bundle import find_companions
from llvq.checkpoints.checkpoint import Checkpoint
from llvq.checkpoints.longlive import read_dit
from llvq.checkpoints.lora import read_loras
from llvq.checkpoints.merged import merge
from llvq.checkpoints.source import open_tensors
from llvq.checkpoints.specs import dit_specs, vae_specs
from llvq.checkpoints.stream import read_stream
from llvq.checkpoints.text import read_text_encoder
from llvq.checkpoints.text_names import TABLE as TEXT
from llvq.checkpoints.text_names import text_specs
from llvq.checkpoints.vae import read_vae
from llvq.checkpoints.vae_names import names_of
from llvq.checkpoints.wan_names import to_diffusers
from llvq.errors import LlvqError
from llvq.models.config import WAN21_VAE, WAN22_VAE, DitConfig, TextConfig
from llvq.sources import TensorSource

MEMORY_GROWTH = 300 * 2**20
DIT = DitConfig(dim=128, ffn_dim=16, num_heads=1, num_layers=1, in_dim=4, out_dim=4, text_dim=8)
UMT5 = TextConfig(
    vocab_size=8, dim=8, attn_dim=8, ffn_dim=8, num_heads=1, num_layers=1, num_buckets=4
)
VAES = {
    name: replace(vae, dim=2, dec_dim=2, z_dim=2, num_res_blocks=1, dim_mult=(1, 2),
                  temporal_downsample=(True,))
    for name, vae in (("wan2.2", WAN22_VAE), ("wan2.1", WAN21_VAE))
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def renamed(shapes: Shapes, to: Callable[[str], str | None]) -> Shapes:
    return {to(name) or name: shape for name, shape in shapes.items()}


def lora_shapes() -> Shapes:
    stem = "generator_lora.base_model.model.model.blocks.0"
    return {
        f"{stem}.self_attn.q.lora_A.weight": (2, 128),
        f"{stem}.self_attn.q.lora_B.weight": (128, 2),
        f"{stem}.ffn.0.lora_A.default.weight": (2, 128),
        f"{stem}.ffn.0.lora_B.default.weight": (16, 2),
    }


LAYOUTS: dict[str, Shapes] = {
    "dit": dit_specs(DIT),
    "dit diffusers": renamed(dit_specs(DIT), to_diffusers),
    "dit training": {
        **{f"generator.model.{n}": s for n, s in dit_specs(DIT).items()},
        **{f"generator_ema.model._fsdp_wrapped_module.{n}": s for n, s in dit_specs(DIT).items()},
    },
    "text": text_specs(UMT5),
    "text wan": renamed(text_specs(UMT5), TEXT.to_right),
    "lora": lora_shapes(),
    **{f"vae {name}": vae_specs(config) for name, config in VAES.items()},
    **{
        f"vae {name} diffusers": renamed(vae_specs(config), names_of(config).to_right)
        for name, config in VAES.items()
    },
}


def read_all(tensors: TensorSource) -> None:
    for name in tensors.names():
        spec = tensors.spec(name)
        assert tuple(tensors.read(name).shape) == spec.shape
        if spec.shape:
            tensors.read_rows(name, 0, min(2, spec.shape[0]))


def read_merged(path: Path) -> None:
    base = path.parent / "base" / "model.safetensors"
    if not base.exists():
        base.parent.mkdir()
        save_file({n: torch.zeros(s) for n, s in dit_specs(DIT).items()}, base)
    read_all(merge(read_dit(base), base, read_loras([path])).tensors)


def read_part(reader: Callable[[Path], Checkpoint[Any]], path: Path) -> None:
    read_all(reader(path).tensors)


READERS: dict[str, Callable[[Path], None]] = {
    "dit": lambda path: read_part(read_dit, path),
    "text": lambda path: read_part(read_text_encoder, path),
    "vae": lambda path: read_part(read_vae, path),
    "lora": read_merged,
}


def open_every_way(path: Path) -> None:
    """All readers see the file: a mutation may make it look like another part."""
    for reader in (*READERS.values(), lambda path: read_all(open_tensors(path))):
        with explained():
            reader(path)


@contextmanager
def explained() -> Iterator[None]:
    """What is refused is refused in all four parts."""
    try:
        yield
    except LlvqError as error:
        assert error.what and error.because and error.fix, error


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after - before < MEMORY_GROWTH


def test_the_unmutated_files_are_read(tmp_path: Path) -> None:
    for layout, shapes in LAYOUTS.items():
        path = tmp_path / "m.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
        READERS[layout.split()[0]](path)


def examples(number: int) -> settings:
    return settings(
        max_examples=number, suppress_health_check=list(HealthCheck), deadline=20_000, database=None
    )


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 64, 127, 128, 129, 2**20, 2**31, 2**62, 2**63 - 1])
PIECES = st.sampled_from(
    ["", ".", "0", "1", "999999", "9" * 40, "blocks", "{}", "model", "weight", "lora_A", "\u0663",
     "generator", "generator_lora", "encoder", "decoder", "downsamples", "attn1", "self_attn", "q"]
)  # fmt: skip
NAMES = st.lists(PIECES, min_size=1, max_size=6).map(".".join)
DTYPES = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn]
)


def mutate_names(data: st.DataObject, shapes: Shapes) -> Shapes:
    """A few tensors dropped, renamed, misshapen or added."""
    made = dict(shapes)
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(made)))
        shape = made.pop(name)
        kind = data.draw(st.sampled_from(["drop", "rename", "shape", "number", "add"]))
        if kind == "rename":
            made[data.draw(NAMES)] = shape
        elif kind == "shape":
            sizes = st.lists(st.sampled_from([0, 1, 2, 3, 128]), max_size=5)
            made[name] = tuple(data.draw(sizes.filter(lambda shape: prod(shape) < 2**16)))
        elif kind == "number":
            made[name.replace(".0.", f".{data.draw(st.sampled_from([1, 2, 70, 10**9]))}.", 1)] = (
                shape
            )
        elif kind == "add":
            made |= {name: shape, data.draw(NAMES): shape}
        if not made:
            break
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@examples(15)
@given(data=st.data())
def test_tensors_of_other_names_shapes_and_dtypes(
    tmp_path: Path, layout: str, data: st.DataObject
) -> None:
    shapes = mutate_names(data, LAYOUTS[layout])
    odd = data.draw(DTYPES)
    tensors = {
        name: torch.zeros(shape, dtype=odd if data.draw(st.integers(0, 40)) == 0 else torch.float32)
        for name, shape in shapes.items()
    }
    if data.draw(st.booleans()):
        path = tmp_path / "m.safetensors"
        save_file(tensors, path)
    else:
        path = tmp_path / "m.pt"
        torch.save(tensors, path)
    open_every_way(path)


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize("layout", ["dit", "vae wan2.2 diffusers", "text wan", "lora"])
@examples(25)
@given(data=st.data())
def test_headers_of_safetensors_that_lie(tmp_path: Path, layout: str, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    save_file({n: torch.zeros(s) for n, s in LAYOUTS[layout].items()}, path)
    header, body = header_of(path)
    for _ in range(data.draw(st.integers(1, 3))):
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        match data.draw(st.sampled_from(["shape", "offsets", "dtype", "type"])):
            case "shape":
                entry["shape"] = data.draw(st.lists(NUMBERS, max_size=5))
            case "offsets":
                entry["data_offsets"] = [data.draw(NUMBERS), data.draw(NUMBERS)]
            case "dtype":
                entry["dtype"] = data.draw(st.sampled_from(["F64", "F4", "I8", "X", "", "F8_E8M0"]))
            case _:
                entry["shape"] = data.draw(st.sampled_from([None, "1", [-1], [1.5], {}]))
    if data.draw(st.booleans()):
        header["__metadata__"] = data.draw(
            st.dictionaries(st.sampled_from(["num_heads", "text_len", "x"]), st.text(max_size=5))
        )
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text)] * 4 + [0, 2**20, 2**40, 2**64 - 1]))
    kept = data.draw(st.sampled_from([len(body)] * 3 + [0, 1, len(body) - 1]))
    path.write_bytes(struct.pack("<Q", length) + text + body[:kept])
    open_every_way(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("layout", ["dit training", "vae wan2.1", "lora"])
@examples(25)
@given(data=st.data())
def test_bytes_of_torch_files(tmp_path: Path, layout: str, data: st.DataObject) -> None:
    whole = tmp_path / "whole.pt"
    if not whole.exists():
        torch.save({n: torch.zeros(s) for n, s in LAYOUTS[layout].items()}, whole)
    content = bytearray(whole.read_bytes())
    # The pickle is in the first kilobytes, the directory of the archive in the last.
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, min(20_000, len(content) - 1)))
        at = data.draw(st.sampled_from([place, len(content) - 1 - place]))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 3)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    (tmp_path / "m.pt").write_bytes(content)
    open_every_way(tmp_path / "m.pt")


JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
CONFIG_KEYS = st.sampled_from(
    ["num_heads", "num_attention_heads", "attention_head_dim", "text_len", "num_layers", "stream",
     "patch_size", "eps", "latents_mean", "latents_std", "relative_attention_max_distance",
     "d_model", "lora_alpha", "use_dora", "qk_norm", "dim_mult", "is_residual", "latent_mean",
     "model_type"]
)  # fmt: skip
CLASSES = ["WanModel", "WanTransformer3DModel", "AutoencoderKLWan", "UMT5EncoderModel", 3, None]


@pytest.mark.parametrize("layout", ["dit", "vae wan2.2", "text", "lora"])
@examples(25)
@given(data=st.data())
def test_configs_beside_a_file(tmp_path: Path, layout: str, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    if not path.exists():
        save_file({n: torch.zeros(s) for n, s in LAYOUTS[layout].items()}, path)
    config = data.draw(st.dictionaries(CONFIG_KEYS, JSON, max_size=4))
    config |= {"_class_name": data.draw(st.sampled_from(CLASSES))}
    config |= {"model_type": "umt5"} if data.draw(st.booleans()) else {}
    for name in ("config.json", "vae_config.json", "adapter_config.json"):
        text = json.dumps(config).encode()
        (tmp_path / name).write_bytes(text[: data.draw(st.sampled_from([len(text)] * 5 + [3]))])
    open_every_way(path)
    with explained():
        read_stream(path)


FILES = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "x.safetensors", "../m"]


@examples(60)
@given(data=st.data())
def test_folders_and_their_indexes(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shapes = LAYOUTS["dit"]
    where = {name: data.draw(st.sampled_from(FILES[:2])) for name in list(shapes)[:6]}
    for file in FILES[:3]:
        if data.draw(st.integers(0, 5)):
            inside = {
                n: torch.zeros(s) for n, s in shapes.items() if where.get(n, FILES[0]) == file
            }
            save_file(inside, folder / file)
    index = {name: where.get(name, FILES[0]) for name in shapes}
    for _ in range(data.draw(st.integers(0, 2))):
        index[data.draw(st.sampled_from(sorted(index)))] = data.draw(
            st.sampled_from([*FILES, "\0"])
        )
    document = data.draw(st.sampled_from([{"weight_map": index}, {"weight_map": []}, index, None]))
    if data.draw(st.booleans()):
        (folder / "m.safetensors.index.json").write_text(json.dumps(document))
    if data.draw(st.integers(0, 3)) == 0:
        for part in ("transformer", "vae"):
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(json.dumps({"_class_name": part}))
    open_every_way(folder)
    with explained():
        find_companions(folder)
