"""Texts as people have them: what each of them is read as."""

from __future__ import annotations

import bz2
import gzip
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.statistics.calibration import tokenize
from lowrank_export.converter.texts.corpus import Counts, is_windows, read_corpus, read_text, text_sha256

PARTS = ["one fox\nand another", "zwei Füchse", "三只狐狸😀", "four\u2028five"]
JOINED = "\n\n".join(PARTS)
RECORDS = [{"text": part, "n": number} for number, part in enumerate(PARTS)]
LINES = "\n".join(json.dumps(record) for record in RECORDS)
ESCAPED_LESS = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
TABLE = 'n,text\n0,"one fox\nand another"\n1,zwei Füchse\n2,三只狐狸😀\n3,four\u2028five\n'


def utf16(text: str) -> bytes:
    return b"\xff\xfe" + text.encode("utf-16-le")


SAME: dict[str, bytes] = {
    "plain.txt": JOINED.encode(),
    "no suffix": JOINED.encode(),
    "crlf.txt": JOINED.replace("\n", "\r\n").encode(),
    "old mac.txt": JOINED.replace("\n", "\r").encode(),
    "bom.txt": b"\xef\xbb\xbf" + JOINED.encode(),
    "utf16.txt": utf16(JOINED),
    "utf16be.txt": b"\xfe\xff" + JOINED.encode("utf-16-be"),
    "utf32.txt": JOINED.encode("utf-32"),
    "packed.txt.gz": gzip.compress(JOINED.encode()),
    "two members.txt.gz": gzip.compress(JOINED[:9].encode()) + gzip.compress(JOINED[9:].encode()),
    "packed utf16.gz": gzip.compress(utf16(JOINED)),
    "packed.txt.bz2": bz2.compress(JOINED.encode()),
    "hidden.txt": gzip.compress(JOINED.encode()),
    "lines.jsonl": LINES.encode(),
    "lines.JSONL": LINES.encode(),
    "lines.ndjson": LINES.encode(),
    "lines.NDJSON": LINES.encode(),
    "lines.jsonlines": LINES.encode(),
    "lines.json": LINES.encode(),
    "lines.txt": LINES.encode(),
    "lines": LINES.encode(),
    "letters.jsonl": ESCAPED_LESS.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "gaps.jsonl": ("\n\n" + LINES.replace("\n", "\n \n") + "\n\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "boms.jsonl": b"".join(b"\xef\xbb\xbf" + line.encode() + b"\n" for line in LINES.split("\n")),
    "utf16.jsonl": utf16(ESCAPED_LESS),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "lines.json.GZ": gzip.compress(LINES.encode()),
    "array.json": json.dumps(RECORDS).encode(),
    "indented.json": json.dumps(RECORDS, indent=2).encode(),
    "array.jsonl": json.dumps(RECORDS).encode(),
    "array.txt": json.dumps(RECORDS, indent=2).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
    "strings.json": json.dumps(PARTS).encode(),
    "array.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
    "table.csv": TABLE.encode(),
    "table.csv.gz": gzip.compress(TABLE.encode()),
    "table.tsv": TABLE.replace(",", "\t").encode(),
    "note#1.txt": JOINED.encode(),
    "#.txt": JOINED.encode(),
    "a#b#c.jsonl": LINES.encode(),
    "文本 emoji 😀.txt": JOINED.encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_text_in_every_form(tmp_path: Path, name: str) -> None:
    (path := tmp_path / name).write_bytes(SAME[name])
    for split in ("calibration", "evaluation"):
        found = read_corpus(str(path), split)  # type: ignore[arg-type]
        records = any(word in name for word in ("lines", "array", "json", "strings", "table"))
        assert (found.text, found.documents, found.skipped) == (JOINED, len(PARTS) if records else 1, 0)


RECORDED = [name for name in SAME if any(word in name for word in ("lines", "array", "json", "table"))]


@pytest.mark.parametrize("name", [name for name in RECORDED if "strings" not in name])
def test_fields_of_every_form(tmp_path: Path, name: str) -> None:
    (path := tmp_path / name).write_bytes(SAME[name])
    assert read_text(f"{path}#text", "calibration") == JOINED
    assert read_text(f"{path}#text+text", "evaluation") == "\n\n".join(part * 2 for part in PARTS)
    with pytest.raises(InputError, match=r"has no field 'body'; name its text fields: .*#.*text"):
        read_text(f"{path}#body", "calibration")


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1]\nOh my\n[Chorus]\nla la",
        "[1] Smith, 1999\n[2] Jones, 2001\n",
        "[1, 2, 3]",
        "{not json}\nat all\n",
        '{"text": "a line of JSON"}\nand then a sentence about it\n',
        "{\n  int main;\n}\n",
        "{}",
        '"quoted"\n',
        "17\n",
        "null\n",
        " \n\n[",
        "",
    ],
)
def test_texts_that_only_look_like_records_are_texts(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "t.txt").write_text(text, encoding="utf-8")
    if text == "{}":  # the one line is a record
        with pytest.raises(InputError, match="line 1 has no field 'text'"):
            read_text(str(path), "calibration")
        return
    assert read_corpus(str(path), "calibration").text == text


@given(parts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1), indent=st.sampled_from([None, 1]))
def test_any_texts_come_back_from_json(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("any") / "t.json"
    path.write_text(json.dumps([{"text": part} for part in parts], indent=indent), encoding="utf-8")
    assert read_text(str(path), "calibration") == "\n\n".join(parts)
    path.write_text("\n".join(json.dumps({"text": part}, ensure_ascii=False) for part in parts), encoding="utf-8")
    assert read_text(str(path), "calibration") == "\n\n".join(parts)


def test_null_is_skipped_and_counted(tmp_path: Path) -> None:
    records = [{"text": None, "title": "A"}, {"text": "b", "title": None}, {"text": None, "title": None}]
    (path := tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    found = read_corpus(str(path), "calibration")
    assert (found.text, found.documents, found.skipped) == ("b", 1, 2)
    found = read_corpus(f"{path}#title+text", "calibration")
    assert (found.text, found.documents, found.skipped) == ("A\n\nb", 2, 1)
    said = Counts(found.documents, 1234, found.skipped).said("t.jsonl")
    assert said == "t.jsonl: 2 documents, 1,234 tokens; 1 record without a text skipped"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (7, "a number"),
        (7.5, "a number"),
        (True, "true or false"),
        ({"a": "b"}, "an object"),
        (["a", "b"], "a list"),
        ([{"a": "b"}], "a list"),
        ([{"role": "user", "content": "x"}, "y"], "a list"),
    ],
)
def test_only_strings_are_text(tmp_path: Path, value: Any, kind: str) -> None:
    (path := tmp_path / "t.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": value}))
    with pytest.raises(InputError, match=rf"t\.jsonl: line 2: field 'text' is {kind}, not a text: "):
        read_text(str(path), "calibration")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", '{"data": [{"text": "x"}]}', r"line 1 has no field 'text', and none that holds a text"),
        ("t.json", '{\n "data": [{"text": "x"}]\n}', r"the record has no field 'text', and none that holds a text"),
        ("t.json", '[{"text": "x"}, 7]', "element 2 is not a JSON object"),
        ("t.json", '[{"text": "x"}, {"txt": "y"}]', "element 2 has no field 'text'; name its text fields: .*#txt"),
        ("t.json", '[{"text": "x"}', "line 1 is not a JSON object; one record a line is read, or a JSON array"),
        ("t.json", "[[1, 2], [3]]", "line 1 is not a JSON object"),
        ("t.json", '{\n"text": "x"\n}\n{\n"text": "y"\n}', "line 1 is not a JSON object; one record a line"),
        ("t.csv", "a,b\nx,y\n", "line 2 has no field 'text'; name its text fields: .*#a[+]b"),
        ("t.csv", "text\nx,y\n", "line 2 has more cells"),
        ("t.csv", 'text\n"x', "line 1 is no line of a table"),
        ("t.txt#text", "a text", "line 1 is not a JSON object"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name.partition("#")[0]).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_text(str(tmp_path / name), "calibration")


NOT_UTF8: dict[str, tuple[bytes, str]] = {
    "gbk": ("你好世界,这是校准文本。".encode("gbk") * 400, r"not readable as UTF-8 text \(byte 0xc4 at 0\); .*iconv"),
    "latin": (b"caf\xe9", r"\(byte 0xe9 at 3\); convert it, with iconv"),
    "utf16 without a mark": ("a text".encode("utf-16-le"), "full of NULs: UTF-16 without a byte-order mark.*iconv"),
    "odd utf16": (b"\xff\xfea", "not readable as UTF-16-LE, as its byte-order mark says"),
    "half a letter in utf16": (b"\xff\xfe\x00\xd8a\x00", "not readable as UTF-16-LE"),
    "packed latin": (gzip.compress(b"caf\xe9"), "byte 0xe9 at 3 inside the gzip file"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "packed with zstd; .*zstd -d"),
    "xz": (b"\xfd7zXZ\x00" + bytes(9), "packed with xz; .*xz -d"),
    "zip": (b"PK\x03\x04" + bytes(9), "a zip archive"),
    "pdf": (b"%PDF-1.7 a text", "a PDF"),
    "arrow": (b"ARROW1\x00\x00", "an Arrow file"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "it is a model"),
}


@pytest.mark.parametrize("case", NOT_UTF8)
def test_what_is_no_utf8_says_the_way_out(tmp_path: Path, case: str) -> None:
    content, message = NOT_UTF8[case]
    (path := tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_text(str(path), "calibration")
    assert "\n" not in str(caught.value)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("none.txt", "none.jsonl#text", "none#1.jsonl#text", "none#"):
        with pytest.raises(InputError, match=r"no such text; give .*python-docs.*self.*datasets:NAME"):
            read_text(str(tmp_path / name), "calibration")
    with pytest.raises(InputError, match=r"not readable, since it is a folder; give one file in it"):
        read_text(str(tmp_path), "calibration")


def test_halves_of_the_python_documentation_are_disjoint() -> None:
    from pydoc_data.topics import topics

    calibration, evaluation = (read_text("python-docs", split) for split in ("calibration", "evaluation"))
    held_out = [text for text in topics.values() if text in evaluation]
    assert len(topics) // 5 < len(held_out) < len(topics) // 3
    assert not any(text in calibration for text in held_out)
    assert len(calibration) + len(evaluation) == pytest.approx(sum(map(len, topics.values())), rel=0.01)
    assert read_corpus("python-docs", "evaluation").documents == len(held_out)


def test_datasets(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> None:
    def load_dataset(name: str, configuration: str | None, split: str) -> list[dict[str, Any]]:
        if name == "gone":
            raise ConnectionError("no network\nsecond line")
        return [{"text": f"{name}/{configuration}/{split}", "n": 1}, {"text": None, "n": 2}, {"text": "more", "n": 3}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_text("datasets:wiki:small", "calibration") == "wiki/small/train\n\nmore"
    found = read_corpus("datasets:wiki", "evaluation")
    assert (found.text, found.documents, found.skipped) == ("wiki/None/test\n\nmore", 2, 1)
    assert read_text("datasets:wiki#text", "evaluation") == "wiki/None/test\n\nmore"
    with pytest.raises(InputError, match="datasets:wiki: row 1: field 'n' is a number"):
        read_text("datasets:wiki#n", "evaluation")
    with pytest.raises(InputError, match=r"datasets:gone: cannot be read \(no network\)$"):
        read_text("datasets:gone", "calibration")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install lowrank-export\[datasets\]"):
        read_text("datasets:wiki", "calibration")


def test_the_hash_is_of_the_text_whatever_its_form(tmp_path: Path) -> None:
    for name in ("plain.txt", "lines.jsonl", "array.json.gz"):
        (tmp_path / name.replace(".gz", "")).write_bytes(
            gzip.compress(SAME[name]) if name == "array.json.gz" else SAME[name]
        )
    found = {text_sha256(str(path)) for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert len(found) == 1
    (tmp_path / "plain.txt").write_text(JOINED + ".", encoding="utf-8")
    assert text_sha256(str(tmp_path / "plain.txt")) not in found


def test_token_windows_are_known_by_what_they_begin_with(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "t.txt").write_text("text")
    assert is_windows(str(tmp_path / "w.bin")) and is_windows("none.NPY")
    assert not is_windows(str(tmp_path / "t.txt")) and not is_windows("python-docs") and not is_windows("~nobody/x")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
)
CHAT = [{"role": "user", "content": "a rank?"}, {"role": "assistant", "content": "a number"}]


@pytest.fixture
def instruct(tiny: ModuleType) -> Callable[..., Any]:
    """A tokenizer with a chat template."""

    def make(template: str | None = TEMPLATE) -> Any:
        tokenizer = deepcopy(tiny.tokenizer())
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT},
        {"messages": [{"from": "human", "value": "a rank?"}, {"from": "gpt", "value": "a number"}]},
        {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "a "}, "number"]}]},
        {"messages": [CHAT[0], {**CHAT[1], "name": None, "tool_calls": None}]},
    ],
)
def test_conversations_go_through_the_models_own_template(
    tmp_path: Path, instruct: Callable[..., Any], record: dict[str, Any]
) -> None:
    tokenizer = instruct()
    (path := tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(record)] * 2 + ['{"messages": null}']))
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False)
    found = read_corpus(f"{path}#messages", "calibration", tokenizer)
    assert (found.text, found.documents, found.skipped) == (expected * 2, 2, 1)
    tokens = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert tokenize(tokenizer, found.text).tolist() == tokens * 2
    assert len(text_sha256(f"{path}#messages")) == 64


def test_a_day_that_a_template_asks_for_is_always_the_same(tmp_path: Path, instruct: Callable[..., Any]) -> None:
    (path := tmp_path / "chat.json").write_text(json.dumps([{"messages": CHAT}]))
    asks = "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    for template in (asks, "{{ strftime_now('%Y') }}", "{{ strftime_now is defined and strftime_now('%d %b %Y') }}"):
        assert read_corpus(f"{path}#messages", "evaluation", instruct(template)).text == "26 Jul 2024"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "x"}], r"line 1: the model's chat template refuses it \(no tools here\)"),
        ([{"role": "user", "content": 7}], "line 1: a message whose role or content is no text"),
        ([{"role": 7, "content": "x"}], "line 1: a message whose role or content is no text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "line 1: a message holds a part of type 'image'"),
        ([{"role": "user", "content": "\ud800"}], "line 1 holds half a surrogate pair"),
    ],
)
def test_conversations_that_are_refused(
    tmp_path: Path, instruct: Callable[..., Any], messages: list[dict[str, Any]], message: str
) -> None:
    (path := tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages, "text": "x"}))
    with pytest.raises(InputError, match=message):
        read_corpus(f"{path}#messages", "calibration", instruct())


def test_conversations_want_a_template_and_stand_alone(tmp_path: Path, instruct: Callable[..., Any]) -> None:
    (path := tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT, "title": "x"}))
    with pytest.raises(InputError, match=r"line 1: is a conversation, and .* has no chat template; give a field"):
        read_corpus(f"{path}#messages", "calibration", instruct(None))
    with pytest.raises(InputError, match="'messages' is a conversation, which stands alone"):
        read_corpus(f"{path}#title+messages", "calibration", instruct())
    with pytest.raises(InputError, match=r"has no field 'text'; name its text fields: .*chat\.jsonl#messages\+title$"):
        read_corpus(str(path), "calibration", instruct())
    with pytest.raises(InputError, match="which only a model's chat template makes a text"):
        read_text(f"{path}#messages", "calibration")
