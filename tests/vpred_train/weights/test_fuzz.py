"""Any bytes are read or refused in one line: mutants of real files, of every kind that a stranger may give us.

    PYTHONPATH=.:tests .venv/bin/python tests/vpred_train/weights/test_fuzz.py COUNT SEED

tries COUNT of each kind and prints what was found.
"""

import io
import json
import os
import random
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from launcher.contract.config import ConfigError
from support import GOLDEN
from support.weights_files import TINY, TINY_RECORD, write_tiny
from vpred_train.config.sampling import SamplingConfig
from vpred_train.sampling.image_request import ImageRequest, read_request
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.mindformers_folder import METADATA_FILE, read_iteration
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore
from vpred_train.weights.layouts.detection import layout_scores
from vpred_train.weights.layouts.diffusers_folder import text_encoder_document, unet_document, vae_document
from vpred_train.weights.layouts.record_files import parsed_record
from vpred_train.weights.layouts.weight_source import Source
from vpred_train.weights.lora.files import METADATA_KEY, is_lora, open_lora, read_factors
from vpred_train.weights.record_lookup import record_for

TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MOST_BYTES = 1 << 22  # of all the arrays of one mutant, each of which has less than 100 kB
JSON_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 1e308, float("nan"), float("inf"), 1 << 63, 1 << 70, "",
    "v_prediction", "\0", "\ud800", [], [1], [[]], {}, {"a": None}, "x" * 300, [0, 4], "epsilon", [96, 64],
]  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """With a few bytes changed, cut, doubled or put in."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del found[at : at + rng.choice((1, 2, 8, 100))]
            case 3:
                found[at:at] = found[at : at + rng.choice((1, 8, 40))]
            case _:
                found[at:at] = rng.randbytes(rng.randint(1, 9))
    return bytes(found)


def reshaped(rng: random.Random, document: Any) -> Any:
    """JSON with one value at any depth replaced or taken away."""
    if isinstance(document, (dict, list)) and document and rng.random() < 0.85:
        copy: Any = document.copy()
        key = rng.choice([*document]) if isinstance(document, dict) else rng.randrange(len(document))
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = reshaped(rng, document[key])
        return copy
    return rng.choice(JSON_VALUES)


def encoded(rng: random.Random, document: Any) -> bytes:
    for _ in range(rng.choice((1, 1, 2))):
        document = reshaped(rng, document)
    content = json.dumps(document).encode()
    return mutated(rng, content) if rng.random() < 0.2 else content


def with_header(header: bytes, values: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + values


def split(content: bytes) -> tuple[Any, bytes]:
    """Header and values of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


class Seeds:
    """What is mutated, and a folder to put the mutants in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arrays = {
            "a.weight": np.ones((3, 4), np.float32),
            "b": np.zeros(5, np.float16),
            "v_pred": np.zeros(0, np.float32),
        }
        self.safetensors = save(arrays, {"parameterization": TINY_RECORD.model_dump_json()})
        factors = {
            f"{TO_Q}.lora_A.weight": np.ones((2, 16), np.float32),
            f"{TO_Q}.lora_B.weight": np.ones((16, 2), np.float32),
        }
        settings = {"unet.r": 2, "unet.lora_alpha": 4, "unet.use_dora": False, "unet.alpha_pattern": {}}
        texts = {METADATA_KEY: json.dumps(settings), "parameterization": TINY_RECORD.model_dump_json()}
        self.lora, self.settings = save(factors, texts), settings
        write_mindspore(folder / "x.ckpt", {"a": np.ones((3, 4), np.float32)}, {"parameterization": "{}"})
        self.mindspore = (folder / "x.ckpt").read_bytes()
        self.torch = [
            (GOLDEN / f"torch_{each}.ckpt").read_bytes() for each in ("zip", "legacy", "lightning", "hostile")
        ]
        write_tiny(folder / "tiny", "diffusers")
        self.documents: dict[str, Any] = {
            "unet/config.json": unet_document(TINY.unet, 8),
            "vae/config.json": vae_document(TINY.vae or pytest.fail(), 16) | {"latents_mean": None},
            "text_encoder/config.json": text_encoder_document(TINY.text_encoder),
            "scheduler/scheduler_config.json": json.loads(
                (folder / "tiny" / "scheduler" / "scheduler_config.json").read_text()
            ),
        }
        self.request = ImageRequest(
            prompt="a",
            height=16,
            width=16,
            sampling=SamplingConfig(),
            weights=Path("w"),
            weights_xxh3="0",
            record=TINY_RECORD,
        ).model_dump(mode="json")

    def write(self, content: bytes) -> Path:
        path = self.folder / "mutant"
        path.write_bytes(content)
        return path


def read_all(path: Path) -> None:
    """Also the values, as long as they are few."""
    for tensor in open_contents(path).tensors.values():
        if np.prod(tensor.shape, dtype=object) * 8 < MOST_BYTES:
            tensor.plain()


def try_header(seeds: Seeds, rng: random.Random) -> None:
    header, values = split(seeds.safetensors)
    read_all(seeds.write(with_header(encoded(rng, header), values)))


def try_safetensors(seeds: Seeds, rng: random.Random) -> None:
    read_all(seeds.write(mutated(rng, seeds.safetensors)))


def try_record(seeds: Seeds, rng: random.Random) -> None:
    record = parsed_record(seeds.folder, encoded(rng, TINY_RECORD.model_dump(mode="json")).decode(errors="replace"))
    layout_scores([], record.model)  # all names of the model


def try_lora(seeds: Seeds, rng: random.Random) -> None:
    header, values = split(seeds.lora)
    header["__metadata__"][METADATA_KEY] = encoded(rng, seeds.settings).decode(errors="replace")
    content = json.dumps(header).encode() if rng.random() < 0.5 else encoded(rng, header)
    path = seeds.write(with_header(content, values))
    if is_lora(path):
        read_factors(open_lora(path), TINY)


def try_mindspore(seeds: Seeds, rng: random.Random) -> None:
    read_all(seeds.write(mutated(rng, seeds.mindspore)))


def try_torch(seeds: Seeds, rng: random.Random) -> None:
    read_all(seeds.write(mutated(rng, rng.choice(seeds.torch))))


def try_pickle(seeds: Seeds, rng: random.Random) -> None:
    """In an archive whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(rng.choice((seeds.torch[0], seeds.torch[2])))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(seeds.folder / "mutant", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, mutated(rng, content) if name.endswith("data.pkl") else content)
    read_all(seeds.folder / "mutant")


def try_folder(seeds: Seeds, rng: random.Random) -> None:
    changed = rng.choice([*seeds.documents])
    for name, document in seeds.documents.items():
        content = encoded(rng, document) if name == changed else json.dumps(document).encode()
        (seeds.folder / "tiny" / name).write_bytes(content)
    source = Source(seeds.folder / "tiny", "diffusers", "safetensors", {}, None)
    record_for(source, "auto", None, TINY)


def try_iteration(seeds: Seeds, rng: random.Random) -> None:
    chunk = {"global_offset": [0, 0], "global_shape": [3, 4]}
    record = {
        "state_dict_metadata": {"a.weight": {"global_shape": [3, 4], "chunk": [chunk]}},
        "storage_data": {"('a.weight', (0, 0))": [{"file_name": "mutant", "storage_rank": 0}]},
    }
    seeds.write(seeds.safetensors)
    (seeds.folder / METADATA_FILE).write_bytes(encoded(rng, record))
    read_iteration(seeds.folder)


def try_request(seeds: Seeds, rng: random.Random) -> None:
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_itxt("vpred", encoded(rng, seeds.request).decode(errors="replace"))
    path = seeds.folder / "mutant.png"
    Image.new("RGB", (2, 2)).save(path, "PNG", pnginfo=text)
    if rng.random() < 0.5:
        path.write_bytes(mutated(rng, path.read_bytes()))
    read_request(path)


KINDS: dict[str, Callable[[Seeds, random.Random], None]] = {
    "header": try_header, "safetensors": try_safetensors, "record": try_record, "lora": try_lora,
    "mindspore": try_mindspore, "torch": try_torch, "pickle": try_pickle, "folder": try_folder, "request": try_request,
    "iteration": try_iteration,
}  # fmt: skip
IN_CI = {"record": 60}  # each makes the names of a whole model


def outcomes(kind: str, folder: Path, count: int, seed: int) -> Counter[str]:
    """How many mutants were read and how many refused; what else is raised is the fault that we look for."""
    seeds, found = Seeds(folder), Counter[str]()
    for number in range(count):
        rng = random.Random(f"{kind} {seed} {number}")  # noqa: S311  reproducible is what it must be
        try:
            KINDS[kind](seeds, rng)
            found["read"] += 1
        except ConfigError as error:
            text = str(error)
            assert "\n" not in text and len(text) < 2000, text
            found["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, mutant {number}: {type(error).__name__}: {error}") from error
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    found = outcomes(kind, tmp_path, IN_CI.get(kind, 300), seed=0)
    assert min(found["refused"], found["read"]) > 0 and found["read"] + found["refused"] == IN_CI.get(kind, 300)


if __name__ == "__main__":
    for each in KINDS:
        with tempfile.TemporaryDirectory() as place:
            print(
                each, dict(outcomes(each, Path(place), int(sys.argv[1]), int(sys.argv[2]))), os.times().user, flush=True
            )
