"""Configuration: what is read, and the line that each mistake gets."""

import json
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError, Section, dump_yaml, load_document, schema_json
from launcher.contract.config_errors import InvalidValue, first_mistake


class Device(BaseModel):
    """A leaf's section is a plain pydantic model, not our Section."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: int


class Optimizer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float = 1e-4
    name: Literal["adamw", "adafactor"] = "adamw"
    warmup: int = 10
    clip: float | None = None
    batch: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _warmup_is_short(self) -> "Optimizer":
        if self.warmup > 1000:
            raise ValueError("warmup is longer than the run")
        return self


class Document(Section):
    seed: int
    title: str = "x"
    rate: float = 1.0
    amp: bool = False
    folder: Path = Path("a/b")
    optimizer: Optimizer = Optimizer()
    devices: tuple[Device, ...] = ()
    extra: dict[str, Device] = {}  # noqa: RUF012  pydantic copies it


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str) -> Document:
        path = tmp_path / "demo.yaml"
        path.write_text(text)
        try:
            return load_document(Document, path, overrides)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), "FILE")) from None

    return load


def test_numbers_and_overrides(load):
    document = load(
        "seed: 1\noptimizer: {learning_rate: 1e-5, clip: 1}\ndevices: [{id: 3}]\n",
        "optimizer.name=adafactor",
        "optimizer.batch=4",
        "folder=/tmp/x y",
        "title=0x",
        "amp=true",
    )
    assert document.optimizer == Optimizer(learning_rate=1e-5, clip=1.0, name="adafactor", batch=4)
    assert isinstance(document.optimizer.clip, float)
    assert document.devices == (Device(id=3),)
    assert (document.folder, document.title, document.amp) == (Path("/tmp/x y"), "0x", True)


def test_an_override_may_replace_a_section_or_make_one(load):
    assert load("seed: 1\noptimizer: {warmup: 5}", "optimizer={name: adafactor}").optimizer.warmup == 10
    assert load("seed: 1\noptimizer:\n", "optimizer.warmup=7").optimizer.warmup == 7


# Nine of the last in each line, ten lines: a thousand million values for whoever takes them one by one.
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("seed: '2'", (), "FILE: seed: found '2' (should be a valid integer)"),
        ("seed: 2.0", (), "FILE: seed: found 2.0 (should be a valid integer)"),
        ("seed: true", (), "FILE: seed: found true (should be a valid integer)"),
        ("seed: 1\namp: 1", (), "FILE: amp: found 1 (should be a valid boolean)"),
        ("seed: 1", ("seed=x",), "command line: seed: found 'x' (should be a valid integer)"),
        ("title: a", (), "FILE: seed: found nothing (this key is required)"),
        (
            "sede: 1\nseed: 1",
            (),
            "FILE: sede: found an unknown key; did you mean 'seed'? "
            "known: seed, title, rate, amp, folder, optimizer, devices, extra",
        ),
        (
            "seed: 1",
            ("optimizer.learning_rat=1",),
            "command line: optimizer.learning_rat: found an unknown key; did you mean 'learning_rate'? "
            "known: learning_rate, name, warmup, clip, batch",
        ),
        (
            "seed: 1\noptimizer: {name: adamv}",
            (),
            "FILE: optimizer.name: found 'adamv' (not one of the choices); did you mean 'adamw'? "
            "known: adamw, adafactor",
        ),
        (
            "seed: 1\noptimizer: {batch: many}",
            (),
            "FILE: optimizer.batch: found 'many' (should be a valid integer); or found 'many' "
            "(not one of the choices); known: auto",
        ),
        (
            "seed: 1\noptimizer: 3",
            (),
            "FILE: optimizer: found 3 (must be a section of keys with values); "
            "known: learning_rate, name, warmup, clip, batch",
        ),
        ("seed: 1\noptimizer: {warmup: 2000}", (), "FILE: optimizer: warmup is longer than the run"),
        (
            "seed: 1",
            ("optimizer.warmup=2000",),
            "FILE with the command line: optimizer: warmup is longer than the run",
        ),
        (
            "seed: 1\ndevices: [{id: 1}, {id: x}]",
            (),
            "FILE: devices[1].id: found 'x' (should be a valid integer)",
        ),
        (
            "seed: 1\nextra: {a: {idd: 1, id: 2}}",
            (),
            "FILE: extra.a.idd: found an unknown key; did you mean 'id'? known: id",
        ),
        ("seed: 1", ("seed",), "command line: found 'seed' (an override is written section.key=value)"),
        (
            "seed: 1\ndevices: [{id: 1}]",
            ("devices.0=2",),
            'command line: devices.0: devices is [{"id": 1}], not a section; give it whole: devices=...',
        ),
        ("seed: 1", ("title=[1",), "command line: title: line 1, column 3: not valid YAML"),
        (
            "seed: 1\nseed: 2",
            (),
            "FILE: line 2, column 1: not valid YAML (key 'seed' is already given in line 1)",
        ),
        ("seed: [1", (), "FILE: line 1, column 9: not valid YAML"),
        ("- 1", (), "FILE: found [1] (the file must hold keys with values)"),
        ("seed: !!python/name:os.system ''", (), "FILE: line 1, column 7: not valid YAML"),
        ("seed: 1\nrate: .inf", (), "FILE: rate: found Infinity (should be a finite number)"),
        ("seed: 1", ("rate=.nan",), "command line: rate: found NaN (should be a finite number)"),
        ('seed: 1\n"a\\nb": 1', (), "FILE: 'a\\nb': found an unknown key"),
        ("seed: !!int x", (), "FILE: line 1, column 7: not valid YAML (found the tag !!int"),
        ("seed: !!float ''", (), "FILE: line 1, column 7: not valid YAML (found the tag !!float"),
        ("seed: !!timestamp x", (), "FILE: line 1, column 7: not valid YAML (found the tag !!timestamp"),
        ("seed: !!bool x", (), "FILE: line 1, column 7: not valid YAML (found the tag !!bool"),
        ("seed: 1\non: 2", (), "FILE: line 2, column 1: not valid YAML (key on is no text; put it in quotes"),
        ("seed: 1\n[a]: 2", (), "FILE: line 2, column 1: not valid YAML (key of several values"),
        ("seed: " + "9" * 5000, (), "FILE: line 1, column 7: not valid YAML (found a number of 5000 digits"),
        ("title: \"\\0\"", (), "FILE: line 1, column 8: not valid YAML (text '\\x00' holds what is no character"),
        ("title: \"\\ud800\"", (), "FILE: line 1, column 8: not valid YAML (text '\\ud800' holds what is no char"),
        ("title: &a [*a]", (), "FILE: line 1, column 12: not valid YAML (found the alias *a is within what it"),
        ("title: *b", (), "FILE: line 1, column 8: not valid YAML (found undefined alias"),
        ("[" * 100_000, (), "FILE: line 1, column 51: not valid YAML (found nested more than 50 deep"),
        ("{a: " * 100_000, (), "FILE: line 1, column 201: not valid YAML (found nested more than 50 deep"),
        ("- " * 3000, (), "FILE: line 1, column 101: not valid YAML (found nested more than 50 deep"),
        (LAUGHS, (), "FILE: line 7, column 40: not valid YAML (found more than 1,000,000 values"),
        (MERGES, (), "FILE: line 7, column 30: not valid YAML (found more than 1,000,000 values"),
        ("seed: 1\ntitle: !!binary aGk=", (), "FILE: line 2, column 8: not valid YAML (found the tag !!binary"),
    ],
)  # fmt: skip
def test_each_mistake_gets_its_line(load, text, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once(load):
    with pytest.raises(ConfigError) as caught:
        load("seed: x\namp: 3\noptimizer: {warmup: y}")
    assert len(str(caught.value).splitlines()) == 3


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        load_document(Document, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load_document(Document, tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"title: \xe9\n")
    with pytest.raises(ConfigError, match=r"not a UTF-8 text file \(byte 7\)"):
        load_document(Document, latin)


@settings(max_examples=40, deadline=None)
@example(title="a\x85b", learning_rate=1e-4, clip=None, ids=[])
@given(
    title=st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    learning_rate=st.floats(allow_nan=False),
    clip=st.none() | st.floats(allow_nan=False),
    ids=st.lists(st.integers(-(2**62), 2**62)),
)
def test_a_written_document_loads_back_equal(tmp_path_factory, title, learning_rate, clip, ids):
    document = Document(
        seed=3,
        title=title,
        optimizer=Optimizer(learning_rate=learning_rate, clip=clip),
        devices=tuple(Device(id=number) for number in ids),
    )
    path = tmp_path_factory.mktemp("round") / "document.yaml"
    path.write_bytes(dump_yaml(document).encode())
    assert load_document(Document, path) == document


def test_yaml_has_no_surprising_numbers():
    assert yaml_dialect.parse("[1e-4, 1E6, 1., .5, 1_000, 0x1f, -0]") == [1e-4, 1e6, 1.0, 0.5, 1000, 31, 0]
    assert yaml_dialect.parse("[010, 1:30, 2026-01-02, 1e, e5]") == ["010", "1:30", "2026-01-02", "1e", "e5"]
    assert yaml_dialect.parse("[.inf, -.inf]") == [math.inf, -math.inf]
    assert yaml_dialect.parse("a: &x {b: 1}\nc: {<<: *x, b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}


def test_documents_are_frozen_and_have_a_schema(load):
    with pytest.raises(ValueError, match="frozen"):
        load("seed: 1").seed = 2
    assert json.loads(schema_json(Document))["required"] == ["seed"]


def test_json_with_escapes_above_the_first_plane_is_read(load):
    assert load('{"seed": 1, "title": "\\ud83d\\ude00"}').title == "\U0001f600"
    assert load("\ufeffseed: 1\n").seed == 1


def test_the_first_mistake_of_a_model_that_is_no_document():
    def mistake(**values) -> InvalidValue:
        with pytest.raises(ValidationError) as caught:
            Document.model_validate({"seed": 1, **values})
        return first_mistake(caught.value)

    assert mistake(optimizer={"warmup": "ten"}) == InvalidValue(
        ("optimizer", "warmup"), "ten", "Input should be a valid integer, unable to parse string as an integer"
    )
    whole = mistake(optimizer={"warmup": 2000}, title=3)
    assert (whole.keys, whole.reason) == (("title",), "Input should be a valid string")
    assert mistake(optimizer={"warmup": 2000}).reason == "warmup is longer than the run"


PIECES = st.sampled_from(
    ["seed: 1\n", "seed: ", "title: ", "rate: ", "optimizer: {clip: 1}", "optimizer:", "  clip: .inf",
     "devices: [{id: 1}]", "\n", "&a ", "*a", "<<: *a", "!!int ", "!!binary aa==", "!<x> ", "? ", "- ", ": ",
     "[", "]", "{", "}", ">-\n", "|\n", "'", '"', "\\", "%YAML 1.1\n", "---\n", "...\n", "#", "@", "`", "\t",
     "\ufeff", "\x85", "\u2028", "\x00", "\x1b", "1e999", "0x10", "1_000", "2024-01-01", "on", "~", ".nan",
     "-.inf", "\U0001f408", "\\ud800", "=", ",", "9" * 200]
)  # fmt: skip


@settings(max_examples=1500, derandomize=True, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=3), max_size=12))
def test_any_text_is_a_document_or_one_declared_error(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes("".join(pieces).encode())
    try:
        document = load_document(Document, path)
    except ConfigError as error:
        assert all(line.startswith(str(path)) for line in str(error).split("\n"))
        return
    path.write_bytes(dump_yaml(document).encode())
    assert load_document(Document, path) == document


def test_a_cluster_of_20_000_devices_is_read():
    hosts = [
        {"address": f"n{h}", "devices": [{"device_id": d, "ip": "10.0.0.1"} for d in range(8)]} for h in range(2500)
    ]
    assert yaml_dialect.parse(json.dumps({"hosts": hosts}))["hosts"] == hosts
