"""A compressed language model sees through the mmproj file of the dense one, in a llama.cpp without the patch."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp (a stock llama.cpp) is not installed"),
]
QUESTION = "What is it?"
CODE = """
import json, os, sys
import xllamacpp as x

model, mmproj, url, question, vocabulary = json.loads(sys.stdin.read())
params = x.CommonParams()
params.model.path, params.mmproj.path, params.mmproj_use_gpu = model, mmproj, False
params.n_ctx, params.warmup, params.verbosity, params.use_jinja = 128, False, -1, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.chat_template = ("{% for c in messages[0].content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}<__media__>{% endif %}{% endfor %}")
content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
# always answers "e": half a letter as an answer would come without probabilities, which are those before the bias
found = x.Server(params).handle_chat_completions({
    "messages": [{"role": "user", "content": content}], "max_tokens": 1, "logprobs": True,
    "top_logprobs": vocabulary, "logit_bias": [["e", 1e4]], "samplers": ["top_k"], "top_k": 1})
row = [None] * vocabulary
for entry in found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
    row[entry["id"]] = entry["logprob"]
print(json.dumps(row), flush=True)
os._exit(0)  # stopping a server can wait for itself forever
"""
NAMES = {  # of a block of SigLIP, in GGUF
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def write_mmproj(path: Path, model: Any) -> None:
    """What llama.cpp's converter makes of tower and projector of a Gemma 3."""
    of, writer = model.config.vision_config, GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "gemma3")
    sizes = {
        "projection_dim": model.config.text_config.hidden_size,
        "image_size": of.image_size,
        "patch_size": of.patch_size,
        "embedding_length": of.hidden_size,
        "feed_forward_length": of.intermediate_size,
        "block_count": of.num_hidden_layers,
        "attention.head_count": of.num_attention_heads,
        "projector.scale_factor": 1,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", of.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    modules = {"v.patch_embd": tower.embeddings.patch_embedding, "v.post_ln": tower.post_layernorm}
    modules |= {"v.position_embd": tower.embeddings.position_embedding}
    for number, block in enumerate(tower.encoder.layers):
        modules |= {f"v.blk.{number}.{new}": block.get_submodule(name) for name, new in NAMES.items()}
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, value in tensors.items():
        writer.add_tensor(name, value.detach().float().numpy())
    writer.add_tensor("mm.soft_emb_norm.weight", 1 + projector.mm_soft_emb_norm.weight.detach().numpy())
    projection = projector.mm_input_projection_weight.detach().numpy().astype(np.float16)
    writer.add_tensor("mm.input_projection.weight", projection, raw_dtype=GGMLQuantizationType.F16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_llama_cpp(model: Path, mmproj: Path, picture: Any, vocabulary: int) -> Any:
    """Log-probabilities of every token after a picture and the question."""
    file = io.BytesIO()
    picture.save(file, "png")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    asked = json.dumps([str(model), str(mmproj), url, QUESTION, vocabulary])
    done = subprocess.run([sys.executable, "-c", CODE], input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1500:]
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@torch.no_grad()
def in_torch(model: Any, processor: Any, picture: Any) -> Any:
    tokenizer = processor.tokenizer
    text = tokenizer.boi_token + 4 * tokenizer.image_token + tokenizer.eoi_token + QUESTION
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255 * 2 - 1
    seen = ids == model.config.image_token_id
    return model(input_ids=ids, pixel_values=pixels, token_type_ids=seen.long()).logits[0, -1].log_softmax(-1).numpy()


def test_the_compressed_model_sees(
    tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any
) -> None:
    dense = tiny_vision.save_seeing(tmp_path / "dense", tiny, "gemma3", "gemma3_text")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    compress(small_recipe(tmp_path, windows=4), tmp_path / "small")
    write_mmproj(tmp_path / "mmproj.gguf", dense)
    processor, small = tiny_vision.processor(tiny, "gemma3"), tiny_vision.load(tmp_path / "small")
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    one, other = map(PIL.fromarray, noise)
    found = {}
    for folder, model in (("dense", dense), ("small", small)):
        file, asked = tmp_path / f"{folder}.gguf", requested("gguf", "f32", layout="dense")
        export(tmp_path / folder, file, asked, progress=SilentProgress())
        found[folder] = in_llama_cpp(file, tmp_path / "mmproj.gguf", one, 352)
        # its convolution and the projection round to 16 bits
        np.testing.assert_allclose(found[folder], in_torch(model, processor, one), atol=0.1)
    assert np.abs(found["small"] - found["dense"]).max() > 0.5
    assert np.abs(found["small"] - in_torch(small, processor, other)).max() > 0.5
