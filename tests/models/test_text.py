from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from llvq.models.config import TextConfig
from llvq.models.text import TextEncoder, relative_buckets

SMALL = TextConfig(
    vocab_size=100, dim=64, attn_dim=48, ffn_dim=96, num_heads=4, num_layers=3, max_distance=40
)
LENGTH = 96  # beyond max_distance, so that the last bucket is used


@pytest.fixture(scope="module")
def oracle() -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=SMALL.vocab_size,
        d_model=SMALL.dim,
        d_kv=SMALL.attn_dim // SMALL.num_heads,
        d_ff=SMALL.ffn_dim,
        num_layers=SMALL.num_layers,
        num_heads=SMALL.num_heads,
        relative_attention_num_buckets=SMALL.num_buckets,
        relative_attention_max_distance=SMALL.max_distance,
        attn_implementation="eager",
    )
    model = UMT5EncoderModel(config).eval()
    # The default initialisation leaves the scores near zero, where a wrong bias would not show.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def encoder(oracle: UMT5EncoderModel) -> TextEncoder:
    weights = oracle.state_dict()
    weights.pop("encoder.embed_tokens.weight", None)
    model = TextEncoder(SMALL).eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def batch(dtype: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(
        0, SMALL.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [17]])
    return ids, mask.to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_equal_to_transformers(
    oracle: UMT5EncoderModel, encoder: TextEncoder, dtype: torch.dtype
) -> None:
    ids, mask = batch(dtype)
    expected = oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    expected = expected * mask[..., None]
    error = (encoder(ids, mask) - expected).norm() / expected.norm()
    assert error < 1e-5


def test_every_layer_has_its_own_relative_bias(encoder: TextEncoder) -> None:
    names = [name for name in encoder.state_dict() if "relative_attention_bias" in name]
    assert len(names) == SMALL.num_layers
    before = encoder(*batch())
    for block in encoder.encoder.block:
        bias = block.layer[0].SelfAttention.relative_attention_bias
        kept = bias.weight.clone()
        bias.weight.zero_()
        assert not torch.allclose(encoder(*batch()), before, atol=1e-3)
        bias.weight.copy_(kept)


@pytest.mark.parametrize("length", [1, 2, 40, 300])
def test_the_buckets_are_those_of_transformers(oracle: UMT5EncoderModel, length: int) -> None:
    position = torch.arange(length)
    attention = oracle.encoder.block[0].layer[0].SelfAttention
    expected = attention._relative_position_bucket(position[None, :] - position[:, None])
    assert torch.equal(relative_buckets(torch.zeros(1, length, dtype=torch.int64), SMALL), expected)


def test_padding_is_zero_and_does_not_matter(encoder: TextEncoder) -> None:
    ids, mask = batch()
    embeds = encoder(ids, mask)
    assert embeds[1, 17:].eq(0).all() and embeds[1, :17].ne(0).all()
    ids[1, 17:] = 3
    assert torch.equal(encoder(ids, mask), embeds)


def test_a_row_without_tokens_is_zero_and_not_nan(encoder: TextEncoder) -> None:
    ids, mask = batch()
    assert encoder(ids, torch.zeros_like(mask)).eq(0).all()


def test_the_exported_program_is_the_model(encoder: TextEncoder) -> None:
    program = torch.export.export(encoder, batch(), strict=False)
    other = (batch()[0].flip(0), batch()[1].flip(0))
    assert torch.equal(program.module()(*other), encoder(*other))


def test_umt5_xxl_exports_on_meta_to_plain_aten() -> None:
    with torch.device("meta"):
        model = TextEncoder(TextConfig()).to(torch.bfloat16).eval()
        inputs = (torch.zeros(1, 512, dtype=torch.int64), torch.ones(1, 512, dtype=torch.int64))
    program = torch.export.export(model, inputs, strict=False)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert all(node.target.namespace == "aten" for node in calls)
    # Export checks each cast's input by an assertion that names its device; canonicalize drops it.
    checked = torch.ops.aten._assert_tensor_metadata.default
    assert not [n for n in calls if "device" in n.kwargs and n.target is not checked]
    assert not any(node.target._schema.is_mutable for node in calls)
    assert not [node for node in calls if "item" in str(node.target)]
    assert not program.range_constraints
    embeds = program.graph.output_node().args[0][0].meta["val"]
    assert embeds.shape == (1, 512, 4096) and embeds.dtype == torch.bfloat16
    assert len(calls) < 24 * 29
