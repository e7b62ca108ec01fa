"""A cache gives back what was written under the same key, and nothing else."""

import contextlib
import json
import math
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from data import (
    ABSENT,
    KEY,
    Buckets,
    Cache,
    CacheFetcher,
    CacheSpecs,
    CacheWriter,
    DataConfig,
    DataError,
    Entries,
    Fetcher,
    ImageFetcher,
    Loader,
    Source,
    dropped,
    entry_keys,
    find_entries,
    image_keys,
    make_order,
    mapped_entries,
    one_bucket,
    open_source,
    table_of,
    write_entries,
)
from data.cache.cache import make_table
from data.commands.cli import main

SPEC = {"kind": "moments", "height": 8, "vae": {"xxh3": "1"}}
SPECS = CacheSpecs(moments=SPEC, text={"kind": "text", "text_encoder": {"xxh3": "2"}})
REMEDY = "make them with COMMAND"


def values(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape), np.float32)


def write(folder: Path, spec: dict[str, Any], contents: list[str], entries: np.ndarray, **options: int) -> None:
    with CacheWriter(folder, spec, **options) as writer:
        for key, value in zip(entry_keys(spec, contents), entries, strict=True):
            writer.add(key, value)


def test_entries_come_back_from_all_shards(tmp_path: Path) -> None:
    names, entries = [str(number) for number in range(10)], values(10, 2, 3)
    write(tmp_path, SPEC, names, entries, shard_bytes=3 * entries[0].nbytes)
    cache = Cache(tmp_path)
    assert (len(cache.shards), len(cache)) == (4, 10)
    rows = cache.table().find(entry_keys(SPEC, names[::-1]))
    np.testing.assert_array_equal([cache.read(row) for row in rows], entries[::-1])
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 - as it goes to a worker process
    np.testing.assert_array_equal(again.read(rows[0]), entries[9])


def test_a_shard_is_plain_safetensors(tmp_path: Path) -> None:
    entries = values(3, 2, 3)
    write(tmp_path, SPEC, ["a", "b", "c"], entries)
    tensors = load_file(next(tmp_path.glob("*.safetensors")))
    np.testing.assert_array_equal(tensors["values"], entries)
    assert tensors["xxh3"].tolist() == [xxhash.xxh3_64_intdigest(entry.tobytes()) for entry in entries]


@pytest.mark.parametrize(
    "other",
    [{**SPEC, "height": 16}, {**SPEC, "vae": {"xxh3": "3"}}, {**SPEC, "kind": "text"}, {**SPEC, "more": None}],
)
def test_any_other_input_is_a_miss(tmp_path: Path, other: dict[str, Any]) -> None:
    write(tmp_path, SPEC, ["a", "b"], values(2, 2))
    cache = Cache(tmp_path)
    assert (cache.table().find(entry_keys(SPEC, ["a", "b"])) != ABSENT).all()
    assert (cache.table().find(entry_keys(SPEC, ["A", "c", ""])) == ABSENT).all()
    assert (cache.table().find(entry_keys(other, ["a", "b"])) == ABSENT).all()


def test_a_writer_that_fails_leaves_whole_shards_alone(tmp_path: Path) -> None:
    entries = values(5, 2)
    keys = entry_keys(SPEC, list("abcde"))
    with (
        pytest.raises(KeyboardInterrupt),
        CacheWriter(tmp_path, SPEC, shard_bytes=2 * entries[0].nbytes) as writer,
    ):
        for key, value in zip(keys, entries, strict=True):
            writer.add(key, value)
        raise KeyboardInterrupt
    found = Cache(tmp_path).table().find(keys) != ABSENT
    assert found.tolist() == [True, True, True, True, False]
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_damage_is_told_and_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, SPEC, ["a", "b"], values(2, 64))
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[content.index(values(2, 64)[1].tobytes()) + 7] ^= 1
    path.write_bytes(content)
    cache = Cache(tmp_path)
    first, second = cache.table().find(entry_keys(SPEC, ["a", "b"]))
    np.testing.assert_array_equal(cache.read(first), values(2, 64)[0])
    with pytest.raises(DataError, match=rf"{path.name}: entry 1 is not what was written; remove this file"):
        cache.read(second)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path)])
    assert ended.value.code == 2
    assert "entry 1 is not what was written" in capsys.readouterr().err
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{path.name}: damaged"):
        Cache(tmp_path)


def squares(source: Source) -> Buckets:
    return one_bucket((8, 8), len(source))


def filled(folder: Path, source: Source) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A cache of recognisable entries: by content hash and whether mirrored, and by caption."""
    samples = [source.sample(number) for number in range(len(source))]
    moments, features = {}, {}
    with CacheWriter(folder, SPECS.moments_at((8, 8))) as writer:
        for flipped in (False, True):
            keys = image_keys(SPECS, source.content_hashes(np.arange(len(source))), (8, 8), flipped)
            for key, sample in zip(keys, samples, strict=True):
                moments[f"{sample.content_hash} {flipped}"] = np.full((4, 2, 2), len(moments), np.float32)
                writer.add(key, moments[f"{sample.content_hash} {flipped}"])
    texts = list(dict.fromkeys(["", *(text for sample in samples for text in sample.captions)]))
    with CacheWriter(folder, SPECS.text) as writer:
        for key, text in zip(entry_keys(SPECS.text, texts), texts, strict=True):
            features[text] = np.full((3, 5), len(features), np.float32)
            writer.add(key, features[text])
    return moments, features


def fetched(fetcher: Fetcher, sample_id: int, epoch: int) -> dict[str, np.ndarray]:
    arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in fetcher.specs((8, 8)).items()}
    fetcher.fetch(sample_id, epoch, (8, 8), arrays)
    return arrays


def test_flips_and_dropped_captions_are_those_of_images(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    moments, features = filled(tmp_path / "cache", source)
    config = DataConfig(path=folder, resolution=8, horizontal_flip=True, caption_drop=0.5)
    plain = ImageFetcher(source, config.model_copy(update={"horizontal_flip": False}), 3)
    images = ImageFetcher(source, config, 3)
    entries = find_entries(Cache(tmp_path / "cache"), source, SPECS, squares(source), mirrored=True, remedy=REMEDY)
    fetcher = CacheFetcher(entries, config, 3)
    seen = set()
    for epoch in range(6):
        for sample_id in range(len(source)):
            pixels, unflipped = (fetched(each, sample_id, epoch)["images"] for each in (images, plain))
            flipped = not np.array_equal(pixels, unflipped)
            drop = dropped(config, 3, epoch, sample_id)
            sample = source.sample(sample_id)
            found = fetched(fetcher, sample_id, epoch)
            np.testing.assert_array_equal(found["moments"], moments[f"{sample.content_hash} {flipped}"])
            np.testing.assert_array_equal(found["features"], features["" if drop else sample.text])
            seen.add((flipped, drop))
    assert len(seen) == 4


def entries_of(folder: Path, cache: Cache) -> Entries:
    source = open_source(folder)
    return find_entries(cache, source, SPECS, squares(source), mirrored=True, remedy=REMEDY)


def cached_loader(folder: Path, entries: Entries, workers: int) -> Loader:
    source = open_source(folder)
    config = DataConfig(path=folder, resolution=8, horizontal_flip=True, caption_drop=0.5, workers=workers)
    order = make_order(source, config, 3, 4)
    return Loader(source, CacheFetcher(entries, config, 3), config, order, rank=0, world_size=1, start_samples_seen=0)


def test_batches_of_a_cache_are_the_same_whoever_makes_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's own thread, one that it starts after the first batch because that was slow, or processes."""
    filled(tmp_path / "cache", open_source(folder))
    made, threads = [], []
    for slow_s_per_byte, workers in ((math.inf, 0), (0, 0), (math.inf, 1)):
        monkeypatch.setattr("data.loading.loader.SLOW_S_PER_BYTE", slow_s_per_byte)
        with cached_loader(folder, entries_of(folder, Cache(tmp_path / "cache")), workers) as loader:
            made.append([next(loader) for _ in range(9)])
            threads.append([thread.name for thread in threading.enumerate()].count("loader"))
    assert threads == [0, 1, 1]
    for batch, *others in zip(*made, strict=True):
        for other in others:
            assert batch.arrays.keys() == other.arrays.keys()
            for name, array in batch.arrays.items():
                np.testing.assert_array_equal(array, other.arrays[name])
            assert (batch.captions, batch.samples_seen) == (other.captions, other.samples_seen)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_entry_is_an_error_that_names_the_sample(folder: Path, tmp_path: Path, workers: int) -> None:
    filled(tmp_path / "cache", open_source(folder))
    entries = entries_of(folder, Cache(tmp_path / "cache"))
    for shard in entries.cache.shards:
        with shard.path.open("r+b") as file:
            file.truncate(shard.values_at)
    with cached_loader(folder, entries, workers) as made:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"sample \d \(img_txt\.csv:\d\): cannot be loaded") as caught:
                next(made)
            assert "is not what was written" in str(caught.value.__cause__)


def test_what_is_missing_is_listed_with_the_cause_and_the_remedy(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    filled(tmp_path / "cache", source)
    cache = Cache(tmp_path / "cache")
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes() + b"\0")  # the same picture in another file
    with pytest.raises(DataError) as missing:
        find_entries(cache, open_source(folder), SPECS, squares(source), mirrored=True, remedy=REMEDY)
    assert str(missing.value).splitlines() == [
        f"{cache.folder}: 1 of 7 samples have no entry for this recipe; {REMEDY}:",
        "  img_txt.csv:5: its image",
    ]
    taller = one_bucket((16, 8), len(source))
    with pytest.raises(DataError, match="7 of 7 samples") as missing:
        find_entries(cache, source, SPECS, taller, mirrored=False, remedy=REMEDY)
    assert str(missing.value).splitlines()[-1] == "  moments made with height 8, but the recipe has 16"


def test_a_cache_is_of_one_crop(folder: Path) -> None:
    with pytest.raises(ValueError, match="cache holds centre crops, but crop is 'random'"):
        DataConfig(path=folder, resolution=8, crop="random", cache=folder)


def test_features_are_those_of_the_caption_that_the_loader_draws(folder: Path, tmp_path: Path) -> None:
    """Some images have several captions, two have the same one; dropped ones are dropped here too."""
    (folder / "img_txt.csv").unlink()
    captions = [["a"], ["a", "b", "c"], ["d"], ["e", "e", "f"], ["g", "h"], ["i"], ["j", "a"]]
    lines = [json.dumps({"file_name": f"{number}.png", "text": each}) for number, each in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(folder)
    _, features = filled(tmp_path / "cache", source)
    entries = entries_of(folder, Cache(tmp_path / "cache"))
    assert [entries.caption_count(number) for number in range(7)] == [len(each) for each in captions]
    mapped = write_entries(entries, tmp_path / "entries")
    seen = set()
    for found in (entries, mapped):
        with cached_loader(folder, found, 0) as batches:
            for batch in (next(batches) for _ in range(40)):
                for sample, caption, array in zip(
                    batch.sample_ids.tolist(), batch.captions, batch.arrays["features"], strict=True
                ):
                    np.testing.assert_array_equal(array, features[caption])
                    seen.add((sample, caption))
    assert seen == {(number, text) for number, each in enumerate(captions) for text in (*each, "")}
    (folder / "metadata.jsonl").write_text("\n".join(lines).replace('"f"', '"new"'))
    with pytest.raises(DataError, match=r"1 of 7 samples have no entry.*\n  metadata\.jsonl:4: its caption$"):
        entries_of(folder, Cache(tmp_path / "cache"))


def test_entries_that_one_rank_found_are_mapped_by_the_others(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    filled(tmp_path / "cache", source)
    found = entries_of(folder, Cache(tmp_path / "cache"))
    found = replace(found, squares=table_of(SPECS, source, found, (8, 8)))
    written = write_entries(found, tmp_path / "entries.safetensors")
    assert written.seal
    pickled = pickle.dumps(written)
    assert len(pickled) < 500  # names, and no arrays
    for other in (written, pickle.loads(pickled)):  # noqa: S301 - as it goes to a worker process
        assert other.cache.shards == found.cache.shards
        assert (other.empty, other.shapes, other.caption_ends) == (found.empty, found.shapes, None)
        for ours, theirs in zip((*other.moments, other.captions), (*found.moments, found.captions), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert not ours.flags.writeable  # of the file, not a copy
        assert found.squares is not None
        assert other.squares is not None
        keys = image_keys(SPECS, source.content_hashes(np.arange(7)), (8, 8), flipped=False)
        np.testing.assert_array_equal(other.squares.find(keys), found.squares.find(keys))
        np.testing.assert_array_equal(other.squares.find(keys), found.moments[0])
    write_entries(replace(found, empty=1), tmp_path / "entries.safetensors")
    with pytest.raises(RuntimeError, match="was replaced while it was in use"):
        mapped_entries(tmp_path / "entries.safetensors", written.seal, tmp_path / "cache")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=30),
)
def test_a_table_finds_what_a_dictionary_finds(held: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    """Also where the halves of keys are equal, or the same key is there twice: then the first one's row."""
    first: dict[tuple[int, int], int] = {}
    for row, key in enumerate(held):
        first.setdefault(key, row)
    table = make_table(np.array(held, KEY), np.arange(len(held), dtype=np.int32))
    assert table.find(np.array(wanted, KEY)).tolist() == [first.get(key, ABSENT) for key in wanted]


def test_a_shard_whose_header_is_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    """Any byte of it, any length: refused, or read as what was written."""
    write(tmp_path, SPEC, ["a", "b"], values(2, 3))
    path = next(tmp_path.glob("*.safetensors"))
    whole, keys = path.read_bytes(), entry_keys(SPEC, ["a", "b"])
    header = 8 + int.from_bytes(whole[:8], "little")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, header, rng.integers(1, 3)):
            content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content[: None if rng.random() < 0.9 else rng.integers(len(whole))])
        try:
            cache = Cache(tmp_path)
            rows = cache.table().find(keys)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            continue
        for row, value in zip(rows, values(2, 3), strict=True):
            with contextlib.suppress(DataError):
                if row != ABSENT:
                    np.testing.assert_array_equal(cache.read(row).ravel(), value.ravel())
    assert refused > 300


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    """Such as those that macOS leaves beside each."""
    write(tmp_path, SPEC, ["a"], values(1, 3))
    (tmp_path / f"._{next(tmp_path.glob('*.safetensors')).name}").write_bytes(b"macOS")
    assert len(Cache(tmp_path)) == 1
