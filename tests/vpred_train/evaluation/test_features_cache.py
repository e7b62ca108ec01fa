"""Features come back by the digest of the file, and damaged parts are computed again."""

from pathlib import Path

import numpy as np
import pytest
import xxhash

from vpred_train.evaluation.features_cache import FeaturesCache, digest_of_file
from vpred_train.evaluation.statistics_file import Origin

ORIGIN = Origin("inception", "clean", "xxh3:0a1b")
WIDTH = 6


def rows(*names: str) -> dict[str, np.ndarray]:
    return {
        xxhash.xxh3_128_hexdigest(name.encode()): np.random.default_rng(len(name)).normal(size=WIDTH).astype(np.float32)
        for name in names
    }


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key].tobytes() == row.tobytes()


def test_parts_come_back_together(tmp_path: Path) -> None:
    assert FeaturesCache(tmp_path, ORIGIN, WIDTH).read() == {}
    FeaturesCache(tmp_path, ORIGIN, WIDTH).add(rows("a", "bb"))
    FeaturesCache(tmp_path, ORIGIN, WIDTH).add(rows("ccc", "bb"))
    FeaturesCache(tmp_path, ORIGIN, WIDTH).add({})
    assert_equal(FeaturesCache(tmp_path, ORIGIN, WIDTH).read(), rows("a", "bb", "ccc"))


@pytest.mark.parametrize(
    "other",
    [
        Origin("clip", "clean", "xxh3:0a1b"),
        Origin("inception", "tf1", "xxh3:0a1b"),
        Origin("inception", "clean", "xxh3:ff"),
    ],
)
def test_each_origin_has_its_own_features(other: Origin, tmp_path: Path) -> None:
    cache = FeaturesCache(tmp_path, ORIGIN, WIDTH)
    cache.add(rows("a"))
    assert FeaturesCache(tmp_path, other, WIDTH).read() == {}
    moved = FeaturesCache(tmp_path, other, WIDTH)
    cache.folder.rename(moved.folder)  # a part in the folder of another origin does not count either
    assert moved.read() == {}


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "renamed"])
def test_a_damaged_part_is_computed_again(damage: str, tmp_path: Path) -> None:
    cache = FeaturesCache(tmp_path, ORIGIN, WIDTH)
    cache.add(rows("a"))
    (path,) = cache.folder.iterdir()
    cache.add(rows("bb"))
    content = bytearray(path.read_bytes())
    if damage == "renamed":
        path.rename(path.with_name("0" * 32 + ".safetensors"))
    else:
        content[-1] ^= 1
        path.write_bytes({"cut": bytes(content[:-3]), "empty": b"", "bit": bytes(content)}[damage])
    assert_equal(cache.read(), rows("bb"))
    assert len(list(cache.folder.iterdir())) == 1
    cache.add(rows("a"))
    assert_equal(cache.read(), rows("a", "bb"))


def test_a_file_that_a_killed_writer_left_is_not_read(tmp_path: Path) -> None:
    cache = FeaturesCache(tmp_path, ORIGIN, WIDTH)
    cache.add(rows("a"))
    (path,) = cache.folder.iterdir()
    path.rename(path.with_name(f".{path.name}.1.ab.tmp"))
    assert cache.read() == {}


def test_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(6,\), not \(5,\)"):
        FeaturesCache(tmp_path, ORIGIN, WIDTH - 1).add(rows("a"))
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # above one chunk
    (tmp_path / "a.png").write_bytes(content)
    assert digest_of_file(tmp_path / "a.png") == xxhash.xxh3_128_hexdigest(content)
