"""Plans against what is really written and allocated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open

from llvq.artifact import Box
from llvq.backends.base import NUMERICS_OF_TARGET
from llvq.box import write_program
from llvq.compiler import Compiled, instantiate
from llvq.errors import TargetError
from llvq.models.config import ModelConfig
from llvq.plan import Plan, plan_box, plan_compiled
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.load import open_checked
from llvq.runtime.sampler import schedule
from llvq.sources import DictSource


@pytest.fixture(scope="module")
def program(
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> Box:
    path = tmp_path_factory.mktemp("plan") / "model.nvfp4"
    write_program(compiled_whole, make_whole_weights(whole_config), path)
    return open_checked(path, kinds=("program",))


@pytest.fixture(scope="module")
def running(
    compiled_whole: Compiled,
    whole_config: ModelConfig,
    make_whole_weights: Callable[[ModelConfig], DictSource],
) -> Executable:
    return instantiate(compiled_whole, make_whole_weights(whole_config))


@pytest.fixture(scope="module")
def plan(compiled_whole: Compiled) -> Plan:
    return plan_compiled(compiled_whole, target="cpu")


def test_weights_are_the_bytes_of_the_files(plan: Plan, program: Box) -> None:
    payload = 0
    for name in program.manifest["files"]:
        if name.startswith("weights/") and name.endswith(".safetensors"):
            with safe_open(program.path / name, "pt") as file:
                payload += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    assert sum(plan.weights.values()) == payload


def test_state_is_what_a_session_allocates(plan: Plan, running: Executable) -> None:
    facts = running.facts
    pages = Denoiser(running, schedule(facts.steps, facts.shift)).pages
    assert plan.state["KV pages"] == sum(page.nbytes for page in pages.values())
    assert plan.state["VAE state"] == sum(t.nbytes for t in Decoder(running).state.values())


def test_outputs_that_are_kept_are_counted(plan: Plan, running: Executable) -> None:
    facts = running.facts
    prompt = torch.zeros(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    made = running.stage("condition")({"prompt_embeds": prompt})
    assert plan.state["outputs of condition"] == sum(t.nbytes for t in made.values())
    steps = torch.zeros(1, facts.frames_per_chunk)
    made = running.stage("modulate")({"timestep": steps})
    name = f"outputs of modulate, {facts.steps + 1} timesteps"
    assert plan.state[name] == sum(t.nbytes for t in made.values()) * (facts.steps + 1)


def test_pages_are_compared_with_the_models_own_dtype(
    compiled_nvfp4: Compiled, compiled_fp32: Compiled
) -> None:
    packed = plan_compiled(compiled_nvfp4, target="cpu").kv
    plain = plan_compiled(compiled_fp32, target="cpu").kv  # fp32 pages of the same model
    assert packed is not None and plain is not None
    assert plain.bytes_plain == plain.nbytes == packed.bytes_plain * 2
    assert packed.bytes_per_chunk * packed.slots == packed.nbytes
    assert 3.4 < packed.compression <= 32 / 9


def test_a_program_on_disk_has_the_plan_of_its_compilation(plan: Plan, program: Box) -> None:
    assert plan_box(program, target="cpu") == plan


def test_fp8_weights_take_a_byte_each_and_a_scale_per_channel(
    compiled_whole: Compiled, plan: Plan
) -> None:
    fp8 = plan_compiled(compiled_whole, target="sm_90a")
    assert fp8.numerics == "w4a8"
    codes = [
        (rows, columns)
        for name, (rows, columns) in _packed_shapes(compiled_whole).items()
        if name.endswith(".codes")
    ]
    assert fp8.weights["denoiser: fp8 values"] == sum(rows * columns * 2 for rows, columns in codes)
    assert fp8.weights["denoiser: fp8 channel scales"] == sum(rows * 4 for rows, _ in codes)
    kept = "denoiser: kept bfloat16"
    assert fp8.weights[kept] == plan.weights[kept]


def _packed_shapes(compiled: Compiled) -> dict[str, tuple[int, int]]:
    nodes = [n for s in compiled.stages.values() for n in s.graph.graph.nodes if n.op == "get_attr"]
    return {str(n.target): tuple(n.meta["val"].shape) for n in nodes if n.meta["val"].ndim == 2}


@pytest.mark.parametrize("numerics", ["w4a4-emulated", "w4a16"])
def test_other_numerics_keep_nvfp4(compiled_whole: Compiled, plan: Plan, numerics: str) -> None:
    assert plan_compiled(compiled_whole, target="sm_90a", numerics=numerics).weights == plan.weights


def test_the_total_adds_what_is_held_and_the_stages_that_overlap(plan: Plan) -> None:
    workspace = {stage.name: stage.workspace for stage in plan.stages}
    denoising = max(workspace[n] for n in ("condition", "modulate", "denoise", "refresh"))
    decoding = max(workspace["decode_first"], workspace["decode"])
    encoding = workspace.pop("encode_text")
    assert plan.workspace == max(denoising + decoding, *workspace.values())
    encoder = plan.weights["text encoder: kept bfloat16"]
    held = sum(plan.weights.values()) - encoder + sum(plan.state.values())
    assert (plan.encoding, plan.generating) == (encoder + encoding, held + plan.workspace)
    assert plan.total == max(plan.encoding, plan.generating)


def test_stages_say_how_often_they_run(plan: Plan) -> None:
    runs = {stage.name: stage.runs for stage in plan.stages}
    assert runs["denoise"] == "4 times per chunk"
    assert runs["modulate"] == "once per timestep, 5 in all"
    assert runs["refresh"] == "once per chunk"
    assert runs["condition"] == runs["encode_text"] == "once per prompt"


def test_globs_name_the_linears_that_they_keep(plan: Plan) -> None:
    assert plan.excluded["*head.head"] == ("dit.head.head",)
    assert plan.excluded["*text_embedding.*"] == ("dit.text_embedding.0", "dit.text_embedding.2")
    assert sum(len(layers) for layers in plan.excluded.values()) == 6


def test_every_target_is_planned_in_its_default_numerics(compiled_whole: Compiled) -> None:
    made = {target: plan_compiled(compiled_whole, target=target) for target in NUMERICS_OF_TARGET}
    assert [p.numerics for p in made.values()] == [n[0] for n in NUMERICS_OF_TARGET.values()]


@pytest.mark.parametrize(("target", "numerics"), [("sm_80", None), ("cpu", "w4a8"), ("cpu", "w1")])
def test_a_target_that_is_not_there(
    compiled_whole: Compiled, target: str, numerics: str | None
) -> None:
    with pytest.raises(TargetError, match=r"no target 'sm_80'|cpu does not compute in") as caught:
        plan_compiled(compiled_whole, target=target, numerics=numerics)
    assert caught.value.fix is not None and caught.value.fix.startswith("use one of")
