"""Every refusal on the way of an export comes before the work, or stands in a list with its reason."""

from __future__ import annotations

import ast
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lowrank_export import exporters
from lowrank_export.converter.budget.forms import Form
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import LowRankError
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.onnx.weights.types import OnnxOptions
from lowrank_export.exporters.preflight import check_exports, check_places
from lowrank_export.exporters.registry import requested

ROOT = Path(exporters.__file__).parent  # of an installed package too
KINDS = ("UsageError", "InputError")
Make = Callable[[Path, ModuleType], Any]
"""Fills a folder; gives the request, with the checkpoint in the folder's "m"."""

ELSEWHERE = {
    "commands.py": "options of the commands of llama.cpp's build",
    "llamacpp/": "the build of the runtime, and its proof",
    "budget/": "the choice for a size, which is the first thing that is done about one",
    "gguf/consistency.py": "reads finished files",
    "gguf/describe.py": "reads finished files",
    "gguf/adapter_files.py": "reads finished files",
    "onnx/describe.py": "reads finished folders",
    "onnx/contents.py": "reads finished folders",
    "onnx/check/folder_check.py": "reads finished folders",
    "options.py": "refuses options of the command line before anything is opened",
    "registry.py": "refuses a name before there is a request",
    "target.py": "refuses a name before there is a request",
    "preflight.py": "is the preflight",
}
"""Files whose refusals are not on the way of an export."""

WEIGHTS = "a number among the weights, which are read when they are written"
OURS = "holds what the exporter has just made against what it meant: a fault of its own, not of the model"
RUN = "what a runtime does with the finished folder is known once there is one"
LATER = {
    "gguf/encoding.py:check_range": (2, WEIGHTS),
    "onnx/weights/encoded.py:_halved": (1, WEIGHTS),
    "gguf/encoding.py:encode": (1, OURS),
    "gguf/ggml_encoder.py:ggml_encode": (2, OURS),
    "gguf/types.py:tensor_bytes": (1, OURS),
    "gguf/file.py:verify_file": (3, OURS),
    "gguf/mixes.py:_wanted": (1, OURS),  # a tensor without dimensions, which no model has a place for
    "onnx/builder/genai_builder.py:build": (1, RUN),
    "onnx/check/genai_check.py:check_genai": (1, RUN),
    "onnx/check/genai_check.py:_check_generation": (1, RUN),
    "onnx/check/graph_check.py:check_graph": (2, RUN),
    "onnx/check/graph_check.py:_check_attention": (2, RUN),
    "onnx/check/selfcheck.py:Tolerance.check": (1, RUN),
    "onnx/session.py:Decoder.run": (1, RUN),
    "onnx/session.py:open_decoder": (1, RUN),
    "onnx/session.py:_decoder": (2, RUN),
    "onnx/session.py:_head_size": (1, RUN),
    "onnx/traced/torch_exporter.py:_rename": (1, RUN),
}
"""Function -> how many of its refusals come later, and why."""


@dataclass(frozen=True)
class First:
    """A refusal of the preflight.

    Attributes:
        make: what is refused.
        needle: what the line says.
        earlier: another place that says it first, so that this one stands for callers of the function alone.
    """

    make: Make
    needle: str
    earlier: bool = False


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    document = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def dense(format: str = "gguf", type: str | None = None, family: str = "llama", **options: Any) -> Make:
    """A dense model, and a request in a type."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", family, blocks=1, **options)
        return requested(format, type)

    return make


def with_config(format: str = "gguf", family: str = "llama", **values: Any) -> Make:
    """Keys of config.json that are no longer what they were."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", family, blocks=1)
        edit(folder / "m" / "config.json", **values)
        return requested(format)

    return make


def with_tensors(change: Callable[[dict[str, Any]], Any], format: str = "gguf") -> Make:
    """Tensors that are no longer what they were."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", "llama", blocks=1, tied=False)
        path = folder / "m" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        return requested(format)

    return make


def with_tokenizer(change: Callable[[dict[str, Any]], Any], format: str = "gguf") -> Make:
    """A tokenizer.json that is no longer what it was."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", "llama", blocks=1)
        path = folder / "m" / "tokenizer.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        return requested(format)

    return make


def more_tokens(format: str) -> Make:
    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", "llama", blocks=1)
        tokenizer = type(tiny.tokenizer()).from_pretrained(str(folder / "m"))
        tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
        tokenizer.save_pretrained(folder / "m")
        return requested(format)

    return make


def slow_tokenizer(folder: Path, tiny: ModuleType) -> Any:
    """One that transformers runs in Python."""
    tiny.save_dense(folder / "m", "llama", blocks=1)
    for file in (folder / "m").glob("*token*"):
        file.unlink()
    (folder / "m" / "vocab.json").write_text(json.dumps({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "|": 4}))
    edit_or_make = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
    (folder / "m" / "tokenizer_config.json").write_text(json.dumps(edit_or_make))
    return requested("gguf")


def importance(content: dict[str, Any], kind: str | None = "imatrix") -> Make:
    """An importance matrix of these tensors."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", "llama", blocks=1)
        path = MODULES["gguf_files"].imatrix(folder / "i.gguf", content, kind)
        return requested("gguf", "q4_0", rounding=Rounding(imatrix=path))

    return make


def adapter(layout: str = "two-factor", **fields: Any) -> Make:
    """A base and an adapter, from a factored checkpoint; a dense model of another seed or size lies beside it."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_factored(folder / "m", "llama", rank=16, blocks=1, layout=layout)
        tiny.save_dense(folder / "other", "llama", blocks=1, seed=1)
        tiny.save_dense(folder / "wide", "llama", blocks=1, intermediate_size=96)
        if fields.get("dense") == "other":
            (folder / "m" / "calibration.json").write_text(json.dumps({"source_sha256": "0" * 64}))
        given = {**fields, "dense": str(folder / fields["dense"])} if fields.get("dense") else fields
        return requested("gguf", "q8_0", layout="adapter", **given)

    return make


def experts(only: dict[str, int], **fields: Any) -> Make:
    """A mixture of experts of which some linears are two factors."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_factored(folder / "m", "mixtral", blocks=1, only=only)
        return requested("gguf", "q8_0", **fields)

    return make


def aware(format: str) -> Make:
    """A checkpoint that records no text, rounded aware of one."""

    def make(folder: Path, tiny: ModuleType) -> Any:
        tiny.save_dense(folder / "m", "llama", blocks=1)
        if format == "onnx":
            return requested("onnx", "int8", options=OnnxOptions(rounding="aware"))
        return requested("gguf", "q4_0", rounding=Rounding("aware"))

    return make


def at_once(make: Callable[[], Any]) -> Make:
    """A request that cannot be made."""
    return lambda folder, tiny: make()


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


MODULES: dict[str, Any] = {}
COUNTS = np.ones(1, np.float32)
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
SHORT = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0] * 8}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
GATE = "blk.0.ffn_gate.weight"
REFUSALS: dict[str, list[First]] = {
    "chosen.py:recorded_forms": [First(dense("gguf", "budget"), "was not made for a size")],
    "chosen.py:check_types": [
        First(at_once(lambda: requested("gguf").check_choice({"m": Form(("int8",))})), "int8 is no type of gguf")
    ],
    "gguf/adapter.py:check_adapter": [
        First(adapter(residual="q9"), "unknown residual type 'q9'"),
        First(adapter(residual="q4_0"), "a residual in q4_0 is of the dense model"),
        First(adapter("pivot"), "layout pivot; an adapter holds two factors"),
        First(
            experts({f"model.layers.0.mlp.experts.{e}.w1": 8 for e in range(4)}, layout="adapter"),
            "a mixture of experts, which an adapter",
        ),
    ],
    "gguf/adapter.py:_checked": [
        First(adapter(dense="other"), "other: not the model that .*m was made from"),
        First(adapter(dense="wide"), r"wide: .* has shape \(64, 96\), not \(64, 160\)"),
    ],
    "gguf/imatrix.py:read_imatrix": [
        First(importance({"a": COUNTS}, None), "is not an importance matrix"),
        First(importance({GATE + ".in_sum2": np.ones((1, 64), np.float32)}), "has sums but no counts"),
        First(
            importance(
                {GATE + ".in_sum2": np.ones((2, 64), np.float32), GATE + ".counts": np.ones((3, 1), np.float32)}
            ),
            "holds no importance of one matrix",
        ),
        First(
            importance(
                {GATE + ".in_sum2": -np.ones((1, 64), np.float32), GATE + ".counts": np.ones((1, 1), np.float32)}
            ),
            "holds no importance of one matrix",
        ),
        First(importance({"a": COUNTS}), "holds no importance of any matrix"),
    ],
    "gguf/imatrix.py:_values": [
        First(
            importance(
                {GATE + ".in_sum2": np.ones((1, 64), np.float16), GATE + ".counts": np.ones((1, 1), np.float32)}
            ),
            "is stored as f16, not f32",
        )
    ],
    "gguf/metadata.py:read_hyperparameters": [
        First(with_config(rms_norm_eps=None), "config.json lacks 'rms_norm_eps'"),
        First(with_config(rms_norm_eps="small"), "holds something that is not a number"),
        First(dense(rope_parameters=DYNAMIC), "does not support rope type 'dynamic'"),
        First(dense(rope_parameters=PARTIAL), "does not support a partial rotary embedding"),
    ],
    "gguf/metadata.py:rope_factors": [
        First(with_config(family="phi3", rope_parameters=SHORT), "short_factor is no list of 8 numbers"),
    ],
    "gguf/mixes.py:Quantization.__post_init__": [
        First(
            at_once(lambda: requested("gguf", "budget", head_type="q8_0")), "has its own types of embedding and head"
        ),
        First(at_once(lambda: requested("gguf", "q9")), "unknown type|unknown GGUF type", earlier=True),
    ],
    "gguf/mixes.py:_wanted": [
        First(lambda folder, tiny: chosen_for_another(folder, tiny), "the choice says nothing of"),
        First(
            lambda folder, tiny: (
                dense()(folder, tiny) and requested("gguf", "q8_0", embedding_type="q8_0", head_type="f16")
            ),
            "the embedding of this model is its head too: one type",
        ),
    ],
    "gguf/names.py:gguf_name": [
        First(with_tensors(lambda t: t.update({"model.x.weight": t[HEAD] * 2})), "has no place", earlier=True)
    ],
    "gguf/names.py:interleave_rows": [First(lambda f, t: odd_heads(f, t), "halves that rotate", earlier=True)],
    "gguf/pretokenizers.py:pretokenizer_name": [
        First(with_tokenizer(lambda d: d.update(normalizer={"type": "Lowercase"})), "normalizer 'Lowercase' has no"),
        First(with_tokenizer(lambda d: d.update(pre_tokenizer={"type": "Whitespace"})), "no pre-tokenizer of llama"),
    ],
    "gguf/rounding_choice.py:Rounding.__post_init__": [
        First(at_once(lambda: Rounding("awaer")), "unknown rounding"),
        First(at_once(lambda: Rounding("aware", imatrix=Path("i"))), "measures its own importance"),
        First(at_once(lambda: Rounding(calibration="text")), "plain rounding runs no text"),
    ],
    "gguf/rounding_choice.py:Rounding.importance": [
        First(
            importance({"b.in_sum2": np.ones((1, 64), np.float32), "b.counts": np.ones((1, 1), np.float32)}),
            "holds nothing of this model's tensors",
        ),
        First(
            lambda folder, tiny: (
                dense(hidden_size=256)(folder, tiny) and requested("gguf", "q8_0", embedding_type="iq2_s")
            ),
            "iq2_s needs the importance of the inputs of token_embd",
        ),
        First(
            importance(
                {GATE + ".in_sum2": np.ones((1, 32), np.float32), GATE + ".counts": np.ones((1, 1), np.float32)}
            ),
            "has 32 inputs there, 64 here",
        ),
    ],
    "gguf/shapes.py:check_shapes": [
        First(
            with_tensors(lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:32].clone()})),
            r"'output_norm.weight' has shape \(32,\)",
        ),
        First(with_tensors(lambda t: t.pop("model.norm.weight")), "is missing", earlier=True),
    ],
    "gguf/shapes.py:_check_pivot": [
        First(lambda f, t: pivot_rows(f, t), "is not a permutation of 63 rows", earlier=True)
    ],
    "gguf/target.py:GgufRequest.__post_init__": [
        First(at_once(lambda: requested("gguf", "q8_0", layout="nativ")), "unknown layout"),
        First(at_once(lambda: requested("gguf", "q8_0", residual="q8_0")), "belong to --layout adapter"),
    ],
    "gguf/target.py:GgufRequest.check": [First(dense("gguf", "iq2_xs"), "needs the importance of its inputs")],
    "gguf/tensors.py:plan_tensors": [
        First(with_tensors(lambda t: t.pop(HEAD)), "'lm_head.weight' is missing", earlier=True),
        First(with_tensors(lambda t: t.pop(EMBEDDING)), "'model.embed_tokens.weight' is missing", earlier=True),
    ],
    "gguf/tensors.py:_stack": [
        First(
            experts({f"model.layers.0.mlp.experts.{expert}.w1": 8 + (expert == 1) for expert in range(4)}),
            "experts of a block have one rank in a GGUF file",
        )
    ],
    "gguf/types.py:storage_type": [
        First(at_once(lambda: requested("gguf", "q8_0", head_type="q9")), "unknown GGUF type")
    ],
    "gguf/vocabulary.py:read_vocabulary": [
        First(
            with_tokenizer(
                lambda d: d.update(
                    model={"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}, added_tokens=[]
                )
            ),
            "is not supported, only BPE",
        )
    ],
    "gguf/vocabulary.py:_load": [First(slow_tokenizer, "cannot be converted to one")],
    "gguf/vocabulary.py:_tokens": [First(more_tokens("gguf"), "token id 320, but the embedding only 320 rows")],
    "gguf/writer.py:export_gguf": [
        First(at_once(lambda: requested("gguf", "q8_0", layout="nativ")), "unknown layout", earlier=True),
        First(lambda folder, tiny: occupied(folder, "gguf"), "already exists", earlier=True),
    ],
    "gguf/writer.py:check_acceptable": [First(lambda f, t: odd_heads(f, t), "heads of 15 numbers do not split")],
    "onnx/builder/builder_families.py:check_rotary": [
        First(dense("onnx", rope_parameters=DYNAMIC), "'dynamic' rotary")
    ],
    "onnx/builder/builder_families.py:check_head_size": [First(dense("onnx", head_dim=24), "attention heads of 24")],
    "onnx/check/check_windows.py:_check_tokens": [
        First(lambda folder, tiny: one_token(folder, tiny), "gives 1 tokens for a sentence|cannot read"),
        First(more_tokens("onnx"), "has token id 320", earlier=True),
    ],
    "onnx/check/genai_tokenizer.py:check_tokenizer": [
        First(
            with_tokenizer(lambda d: d.update(pre_tokenizer={"type": "Punctuation", "behavior": "Isolated"}), "onnx"),
            "tokenizer reads .* otherwise than the checkpoint's|cannot read its tokenizer",
        ),
        First(lambda folder, tiny: other_decoder(folder, tiny), "tokenizer writes|tokenizer reads|cannot read"),
    ],
    "onnx/check/genai_tokenizer.py:check_readable": [
        First(
            with_tokenizer(
                lambda d: d.update(model={"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["e", -1.0]]}),
                "onnx",
            ),
            "GenAI cannot read its tokenizer",
        )
    ],
    "onnx/export.py:export_onnx": [First(at_once(lambda: requested("onnx", "int9")), "unknown type", earlier=True)],
    "onnx/export.py:check_token_ids": [First(more_tokens("onnx"), r"token id 320 \('<\|im_end\|>'\)")],
    "onnx/export.py:_check_destination": [
        First(lambda folder, tiny: occupied(folder, "onnx"), "already exists", earlier=True),
        First(lambda folder, tiny: occupied(folder, "onnx", force=True), "is no ONNX export", earlier=True),
    ],
    "onnx/weights/types.py:block_format": [
        First(lambda f, t: chosen_for_another(f, t, "onnx", "int8"), "the choice says nothing of")
    ],
    "onnx/weights/types.py:OnnxOptions.__post_init__": [
        First(at_once(lambda: OnnxOptions(block_size=33)), "--onnx-block-size 33"),
        First(at_once(lambda: OnnxOptions(accuracy_level=3)), "--onnx-accuracy-level 3"),
        First(at_once(lambda: OnnxOptions(rounding="awaer")), "unknown rounding"),
        First(at_once(lambda: OnnxOptions(factors="some")), "auto or all"),
    ],
}
OF_THE_CONVERTER = {
    "aware GGUF without a text": First(aware("gguf"), "records no calibration text", earlier=True),
    "aware ONNX without a text": First(aware("onnx"), "records no calibration text", earlier=True),
}
"""Refusals of other folders that exports meet."""


def chosen_for_another(folder: Path, tiny: ModuleType, format: str = "gguf", type: str = "q8_0") -> Any:
    """Types that were chosen for a model of other modules."""
    tiny.save_dense(folder / "m", "llama", blocks=1)
    recipe = (
        f"model: x\nmax_bytes: 1MB\nchoice:\n  model.layers.0.mlp.gate_proj: {type}\ncalibration: {folder / 'text'}\n"
    )
    (folder / "m" / "recipe.yaml").write_text(recipe)
    return requested(format, "budget")


def odd_heads(folder: Path, tiny: ModuleType) -> Any:
    """Heads of 15 numbers, which transformers would not make itself."""

    def cut(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "self_attn" in name]:
            rows = 30 if "k_proj" in name or "v_proj" in name else 60
            tensors[name] = (tensors[name][:, :60] if "o_proj" in name else tensors[name][:rows]).clone()

    request = with_tensors(cut)(folder, tiny)
    edit(folder / "m" / "config.json", head_dim=15)
    return request


def pivot_rows(folder: Path, tiny: ModuleType) -> Any:
    """Pivot rows and coefficients that are not the linear's."""
    tiny.save_factored(folder / "m", "llama", rank=16, blocks=1, layout="pivot")
    path = folder / "m" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.lowrank_c.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, {"format": "pt"})
    return requested("gguf")


def occupied(folder: Path, format: str, force: bool = False) -> Any:
    """Something else lies where the export goes."""
    request = requested(format)
    (folder / request.name).mkdir()
    (folder / request.name / "thesis.txt").write_text("mine")
    check_places([request], folder, force)


def one_token(folder: Path, tiny: ModuleType) -> Any:
    """A tokenizer that makes a text one token."""
    return with_tokenizer(
        lambda d: d.update(
            model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
            added_tokens=[],
            pre_tokenizer=None,
            post_processor=None,
        ),
        "onnx",
    )(folder, tiny)


def other_decoder(folder: Path, tiny: ModuleType) -> Any:
    """Tokens that transformers writes out in another way than GenAI."""
    replaced = {"type": "Replace", "pattern": {"String": "e"}, "content": "E"}
    return with_tokenizer(
        lambda d: d.update(decoder={"type": "Sequence", "decoders": [d["decoder"], replaced]}), "onnx"
    )(folder, tiny)


def sites() -> dict[str, int]:
    """Function of exporters/ -> how many refusals it raises, those of `ELSEWHERE` left out."""
    found: dict[str, int] = {}

    def look(node: ast.AST, file: str, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inner = (*names, child.name) if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else names
            if isinstance(child, ast.Raise) and _kind(child) in KINDS:
                place = f"{file}:{'.'.join(inner)}"
                found[place] = found.get(place, 0) + 1
            look(child, file, inner)

    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if not file.startswith(tuple(ELSEWHERE)):
            look(ast.parse(path.read_text(encoding="utf-8")), file, ())
    return found


def _kind(raised: ast.Raise) -> str:
    made = raised.exc.func if isinstance(raised.exc, ast.Call) else raised.exc
    return made.id if isinstance(made, ast.Name) else ""


def test_every_refusal_is_in_a_list() -> None:
    listed = {place: len(refusals) for place, refusals in REFUSALS.items() if refusals}
    for place, (count, _) in LATER.items():
        listed[place] = listed.get(place, 0) + count
    assert listed == sites()


def test_what_lies_elsewhere_is_there() -> None:
    assert all((ROOT / name).exists() for name in ELSEWHERE)


def cases() -> Iterator[Any]:
    for place, refusals in {**REFUSALS, "": list(OF_THE_CONVERTER.values())}.items():
        for number, refusal in enumerate(refusals):
            yield pytest.param(place, refusal, id=f"{place}-{number}")


@pytest.mark.parametrize(("place", "refusal"), list(cases()))
def test_the_preflight_refuses_first(
    place: str, refusal: First, tiny: ModuleType, gguf_files: ModuleType, tmp_path: Path
) -> None:
    """In one line, from that very place, before anything is written."""
    MODULES["gguf_files"] = gguf_files
    with pytest.raises(LowRankError, match=refusal.needle) as refused:
        request = refusal.make(tmp_path, tiny)
        check_exports(CheckpointReader(tmp_path / "m"), [request], exported=True)
    assert "\n" not in str(refused.value)
    if not refusal.earlier:
        last = traceback.extract_tb(refused.value.__traceback__)[-1]
        assert f"{Path(last.filename).relative_to(ROOT).as_posix()}:{last.name}" == _function(place)


def _function(place: str) -> str:
    """Without the class: a frame knows its function alone."""
    file, _, name = place.partition(":")
    return f"{file}:{name.rpartition('.')[2]}"
