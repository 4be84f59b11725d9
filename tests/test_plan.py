"""Plans against what is really written and allocated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llvq import plan as planning
from llvq.artifact import Box
from llvq.backends.base import CPU, NUMERICS_OF_TARGET
from llvq.bench.stages import random_script
from llvq.box import export_box, write_program
from llvq.compiler import Compiled
from llvq.errors import TargetError
from llvq.graphs.allocations import Storages
from llvq.graphs.weight_groups import Limits
from llvq.models.config import ModelConfig
from llvq.plan import Plan, plan_box, plan_compiled
from llvq.plan_pools import CUBLAS_WORKSPACE
from llvq.runtime.decoder import Decoder
from llvq.runtime.denoiser import Denoised, Denoiser
from llvq.runtime.executable import Executable
from llvq.runtime.load import executable, open_checked
from llvq.runtime.sampler import schedule
from llvq.runtime.session import Session
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
def plan(compiled_whole: Compiled) -> Plan:
    return plan_compiled(compiled_whole, target="cpu")


@pytest.fixture(scope="module")
def box(program: Box) -> Box:
    path = program.path.with_suffix(".llvq")
    export_box(program, CPU, path)
    return open_checked(path)


@pytest.fixture(scope="module")
def model(box: Box) -> Executable:
    return executable(box, "cpu")


@pytest.fixture(scope="module")
def on_gpu(compiled_whole: Compiled) -> Plan:
    return plan_compiled(compiled_whole, target="sm_90a")


def test_weights_are_those_of_a_model_that_is_loaded(plan: Plan, model: Executable) -> None:
    held = {t.untyped_storage().data_ptr(): t.nbytes
            for stage in model.stages.values() for t in stage.graph.buffers()
            if t.device.type != "meta"}  # fmt: skip
    assert sum(plan.weights.values()) == sum(held.values())


def test_state_is_what_a_session_allocates(plan: Plan, model: Executable) -> None:
    facts = model.facts
    pages = Denoiser(model, schedule(facts.steps, facts.shift)).pages
    assert plan.state["KV pages"] == sum(page.nbytes for page in pages.values())
    assert plan.state["VAE state"] == sum(t.nbytes for t in Decoder(model).state.values())


def test_outputs_that_are_kept_are_counted(plan: Plan, model: Executable) -> None:
    facts = model.facts
    prompt = torch.zeros(1, facts.text_len, facts.text_dim, dtype=facts.torch_dtype)
    made = model.stage("condition")({"prompt_embeds": prompt})
    assert plan.state["outputs of condition"] == sum(t.nbytes for t in made.values())
    steps = torch.zeros(1, facts.frames_per_chunk)
    made = model.stage("modulate")({"timestep": steps})
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


def test_a_run_allocates_what_is_planned(plan: Plan, box: Box) -> None:
    """Loading and a video of latents, in tensors that a mode sees come and go. It also has noise
    and chunks, which are small."""
    with Storages("cpu") as storages:
        model = executable(
            box, "cpu", stages=box.manifest["stages"].keys() - {"encode_text", "encode_image"}
        )
        script = random_script(model, 5)
        for _ in Session(model, script, steps=2, latents_only=True, decode_depth=0):
            pass
    kept = {name for name in plan.state if name.startswith("outputs of modulate")}
    modulated = sum(plan.state[name] for name in kept) * 3 // 5  # of two steps and a refresh
    state = plan.state["KV pages"] + plan.state["outputs of condition"] + modulated
    wanted = plan.resident + state + plan.workspace["denoising"]
    assert most(storages) == pytest.approx(wanted, rel=0.05)


def test_decoding_allocates_what_is_planned(plan: Plan, model: Executable) -> None:
    facts = model.facts
    shape = (1, facts.frames_per_chunk, facts.latent_channels, *facts.latent_hw)
    latent = torch.randn(shape).to(facts.torch_dtype)
    chunk = Denoised(latent, latent, latent, torch.ones(shape[:2]))
    with Storages("cpu") as storages:
        decoder = Decoder(model)
        for _ in range(2):
            for _ in decoder.pixels(chunk):
                pass
    wanted = plan.state["VAE state"] + plan.workspace["decoding"]
    assert most(storages) == pytest.approx(wanted, rel=0.05)


def most(storages: Storages) -> int:
    """Bytes that were live at once."""
    sizes: dict[int, int] = {}
    live = top = 0
    for number, nbytes in storages.events:
        live += -sizes[number] if nbytes is None else nbytes
        sizes[number] = nbytes or 0
        top = max(top, live)
    return top


def test_a_program_on_disk_has_the_plan_of_its_compilation(plan: Plan, program: Box) -> None:
    assert plan_box(program, target="cpu") == plan


def test_fp8_weights_take_a_byte_each_and_a_scale_per_channel(
    compiled_whole: Compiled, plan: Plan, on_gpu: Plan
) -> None:
    fp8 = on_gpu
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
def test_other_numerics_keep_nvfp4(compiled_nvfp4: Compiled, numerics: str) -> None:
    plain = plan_compiled(compiled_nvfp4, target="cpu")
    made = plan_compiled(compiled_nvfp4, target="sm_90a", numerics=numerics)
    assert made.weights == plain.weights


def test_the_total_is_of_what_is_there_at_once(plan: Plan, model: Executable) -> None:
    encoder = plan.weights["text encoder: kept bfloat16"]
    assert plan.resident == sum(plan.weights.values()) - encoder - plan.image == plan.held
    workspace = {stage.name: stage.workspace for stage in plan.stages}
    assert plan.encoding == encoder + workspace["encode_text"]
    video = sum(plan.state.values()) + sum(plan.workspace.values())
    assert plan.generating == plan.resident + video
    assert plan.total == max(plan.loading, plan.encoding, plan.generating)
    assert plan.loading >= plan.resident
    alone = {t.data_ptr() for name, stage in model.stages.items() if name != "encode_image"
             for t in stage.graph.buffers()}  # fmt: skip
    image = {t.data_ptr(): t.nbytes for t in model.stage("encode_image").graph.buffers()}
    assert plan.image == sum(n for at, n in image.items() if at not in alone) > 0


def test_a_gpu_takes_pools_of_two_streams_and_of_cuda_graphs(on_gpu: Plan) -> None:
    made = on_gpu
    assert made.workspace.keys() == {
        "denoising", "denoising, recorded", "decoding", "decoding, recorded"
    }  # fmt: skip
    multiplies = [size for name, size in made.workspace.items() if name != "decoding"]
    assert min(multiplies) >= CUBLAS_WORKSPACE
    assert made.state["inputs of CUDA graphs"] > made.state["outputs of condition"]
    assert made.loading > made.resident  # in whole segments, and with forms before the last


def test_low_memory_keeps_weights_on_the_host(
    compiled_nvfp4: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Limits(sizes=(2**13,), smallest=256)
    monkeypatch.setattr(planning, "Limits", lambda: small)
    usual, low = (
        plan_compiled(compiled_nvfp4, target="sm_90a", low_memory=low) for low in (False, True)
    )
    assert low.streaming is not None and usual.streaming is None
    assert low.resident + low.streaming.host == usual.resident
    assert low.held < usual.held and low.weights == usual.weights
    assert not any("recorded" in name for name in low.workspace)
    assert low.streaming.copied["denoise"] <= low.streaming.host
    assert low.to_dict()["streaming"]["host"] == low.streaming.host


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


@pytest.mark.parametrize("target", ["sm_100a", "sm_120a"])
def test_a_target_is_planned_in_its_default_numerics(compiled_nvfp4: Compiled, target: str) -> None:
    made = plan_compiled(compiled_nvfp4, target=target)
    assert made.numerics == NUMERICS_OF_TARGET[target][0]


@pytest.mark.parametrize(("target", "numerics"), [("sm_80", None), ("cpu", "w4a8"), ("cpu", "w1")])
def test_a_target_that_is_not_there(
    compiled_whole: Compiled, target: str, numerics: str | None
) -> None:
    with pytest.raises(TargetError, match=r"no target 'sm_80'|cpu does not compute in") as caught:
        plan_compiled(compiled_whole, target=target, numerics=numerics)
    assert caught.value.fix is not None and caught.value.fix.startswith("use one of")


def test_a_box_has_the_plan_of_its_program_for_its_own_target_alone(plan: Plan, box: Box) -> None:
    assert plan_box(box, target="cpu") == plan
    with pytest.raises(TargetError, match="lowered for one target") as caught:
        plan_box(box, target="sm_90a")
    assert "program" in str(caught.value.fix)
