"""The demo model: the figures docs/onnx.md promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load
from lowrank_export.exporters.onnx.check.selfcheck import kld
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.weights.sizes import predict_bytes, rotary_elements

KLD_LIMIT = 0.02
TOKENS = 384


@pytest.mark.reproduce
def test_int8_stays_close_and_as_small_as_predicted(tmp_path: Path, demo: Path, data: Path) -> None:
    text = (data / "wiki.valid.raw").read_text(encoding="utf-8")[:20_000]
    tokens = np.array(AutoTokenizer.from_pretrained(demo)(text)["input_ids"][:TOKENS], dtype=np.int32)
    with torch.inference_mode():
        reference = load(demo)(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    artifact = export_onnx(demo, tmp_path / "out", quantization="int8", progress=SilentProgress())
    decoder = open_decoder(tmp_path / "out", threads=2)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    assert kld(reference, logits).mean() <= KLD_LIMIT
    reader = CheckpointReader(demo)
    shapes = {name: reader.shape(name) for name in reader.names}
    predicted = predict_bytes(shapes, "int8", tied=True, rotary_elements=rotary_elements(reader.config))
    assert artifact.bytes == pytest.approx(predicted, rel=0.03)
