"""Statistics files come back equal; files of other kinds are refused with one line."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.contract.config import ConfigError
from vpred_train.evaluation.frechet import moments
from vpred_train.evaluation.statistics_file import Origin, read_statistics, write_statistics

ORIGIN = Origin("inception", "clean", "xxh3:0a1b")
MOMENTS = moments(np.random.default_rng(0).normal(size=(20, 4)))


def test_statistics_come_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, MOMENTS, ORIGIN)
    found = read_statistics(path, ORIGIN, 4)
    assert (found.origin, found.moments.n) == (ORIGIN, 20)
    assert found.moments.mean.tobytes() == MOMENTS.mean.tobytes()
    assert found.moments.covariance.tobytes() == MOMENTS.covariance.tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_npz_of_published_statistics_is_read(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "coco.npz"
    np.savez(path, mu=MOMENTS.mean.astype(dtype), sigma=MOMENTS.covariance.astype(dtype))
    found = read_statistics(path, ORIGIN, 4)
    assert (found.origin, found.moments.n) == (None, None)
    np.testing.assert_allclose(found.moments.covariance, MOMENTS.covariance, rtol=1e-6)
    assert found.moments.mean.dtype == np.float64


def npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MOMENTS.mean}, "no array sigma; it has mu"),
        ({"x": MOMENTS.mean}, "no array mu; it has none"),
        ({"mu": MOMENTS.mean, "sigma": MOMENTS.covariance[:3]}, "needed"),
        ({"mu": MOMENTS.mean, "sigma": np.triu(MOMENTS.covariance)}, "not symmetric"),
        ({"mu": MOMENTS.mean * np.nan, "sigma": MOMENTS.covariance}, "not finite"),
        ({"mu": MOMENTS.mean.astype(int), "sigma": MOMENTS.covariance}, "mu is of type int64"),
        ({"mu": MOMENTS.mean[:3], "sigma": MOMENTS.covariance[:3, :3]}, "width 3; the features have 4"),
        ({"mu": np.array([{}], object), "sigma": MOMENTS.covariance}, "no readable npz"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    npz(path, **arrays)
    with pytest.raises(ConfigError, match=message) as raised:
        read_statistics(path, ORIGIN, 4)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["s.npz", "s.safetensors", "s.txt"])
@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4" + bytes(40)])
def test_files_of_other_kinds_are_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=name) as raised:
        read_statistics(path, ORIGIN, 4)
    assert "\n" not in str(raised.value)


def test_a_cut_file_a_folder_and_one_array_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, MOMENTS, ORIGIN)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="no readable safetensors file"):
        read_statistics(path, ORIGIN, 4)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"s\.safetensors"):
        read_statistics(path, ORIGIN, 4)
    with (tmp_path / "s.npz").open("wb") as file:
        np.save(file, MOMENTS.mean)
    with pytest.raises(ConfigError, match="one array without a name"):
        read_statistics(tmp_path / "s.npz", ORIGIN, 4)


def test_another_origin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, MOMENTS, ORIGIN)
    with pytest.raises(ConfigError, match="made with recipe 'clean', the images with 'tf1'"):
        read_statistics(path, Origin("inception", "tf1", "xxh3:0a1b"), 4)
    save_file({"mu": MOMENTS.mean, "sigma": MOMENTS.covariance}, path)
    with pytest.raises(ConfigError, match="its metadata is not that of statistics"):
        read_statistics(path, ORIGIN, 4)
