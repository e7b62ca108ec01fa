"""Each key of the recipe and of the cluster file is described in its JSON Schema."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field

from launcher.cluster.config import ClusterConfig
from launcher.contract.config import Section, schema_json
from support.retired_words import retired_in
from vpred_train.config.train import TrainConfig

MAX_CHARACTERS = 240  # two lines


def declared_keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("Section.key", declaration) of every key of the document and of its sections."""
    for section in (schema, *schema.get("$defs", {}).values()):
        for key, declared in section.get("properties", {}).items():
            yield f"{section['title']}.{key}", declared


def faults(schema: dict[str, Any]) -> list[str]:
    """Keys without a description, or with one that is not made of one or two lines of sentences."""
    found = []
    for key, declared in declared_keys(schema):
        # The description of the section that a key refers to is not the key's own.
        words = declared.get("description", "").split()
        if not words or not words[-1].endswith("."):
            found.append(f"{key}: no sentence below it")
        if len(" ".join(words)) > MAX_CHARACTERS:
            found.append(f"{key}: more than {MAX_CHARACTERS} characters")
        found += [f"{key}: {word!r}" for word in retired_in(" ".join(words))]
    return found


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        (TrainConfig, {"TrainConfig.seed", "DataConfig.crop", "SourceConfig.weight", "UNetConfig.res_blocks"}),
        (ClusterConfig, {"ClusterConfig.name", "Device.ip", "Timeouts.step_s"}),
    ],
)
def test_every_key_is_described(document: type[Section], keys: set[str]) -> None:
    schema = json.loads(schema_json(document))
    assert keys <= {key for key, _ in declared_keys(schema)}
    assert faults(schema) == []


class Inner(Section):
    """A section. Its text is not its keys'."""

    silent: int = 0

    described: int = 0
    """This is a sentence."""


class Outer(Section):
    inner: Inner = Inner()

    phrase: int = 0
    """not a sentence"""

    retired: int = 0
    """This tells something."""

    long: Annotated[int, Field(description="word " * 48 + "word.")] = 0


def test_the_rule_bites() -> None:
    assert faults(Outer.model_json_schema()) == [
        "Outer.inner: no sentence below it",
        "Outer.phrase: no sentence below it",
        "Outer.retired: 'tells'",
        "Outer.long: more than 240 characters",
        "Inner.silent: no sentence below it",
    ]
