from __future__ import annotations

import json

import torch

from llvq.quality.comparison import Comparison


def test_json_has_every_layer_and_only_json_numbers(found: Comparison) -> None:
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(document["layers"]) == len(found.layers)
    outputs = [layer["output"]["sqnr_db"] for layer in document["layers"]]
    assert outputs == sorted(outputs)
    assert set(document["chunks"]) == {"free_running", "teacher_forced"}
    assert document["measured"]["versions"]["torch"] == torch.__version__
    assert document["summary"]["free_running"]["worst_db"] == min(
        row["sqnr_db"] for row in document["chunks"]["free_running"]
    )
