"""Opens the weights that the user names: one file of any container, or a diffusers folder."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

from launcher.contract.config import ConfigError
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import MOST_TEXT_BYTES, printable, require_regular
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.safetensors_file import read_sharded
from vpred_train.weights.formats.stored_tensor import Contents, StoredTensor
from vpred_train.weights.layouts.detection import foreign_kind, layout_scores
from vpred_train.weights.layouts.record_files import RECORD_FILE, RECORD_KEY, parsed_record
from vpred_train.weights.layouts.tensor_names import TEXT_MODEL

FOLDERS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PICKLED = {"model": "pytorch_model"}  # transformers' name of the same file before safetensors


@dataclass(frozen=True)
class WeightSource:
    """Holds open weights. Tensors have the names of their layout; in a diffusers folder these begin with `folder/`."""

    path: Path
    layout: str
    container: str
    tensors: dict[str, StoredTensor]
    record: ParameterizationRecord | None

    @property
    def model(self) -> ModelConfig:
        """Return the model that the record declares, else SD2."""
        return self.record.model if self.record else ModelConfig()


def open_weights(path: Path, model: ModelConfig | None = None) -> WeightSource:
    """Open `path` and recognise its layout by its content.

    model: the expected model; default: the record's, else SD2.
    Raises ConfigError: when a file cannot be read, holds another model or has no known layout.
    """
    try:
        contents = _open_folder(path) if path.is_dir() else open_contents(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give full SD 2.x weights") from None
    record = parsed_record(path, contents.texts[RECORD_KEY]) if RECORD_KEY in contents.texts else None
    expected = model or (record.model if record else ModelConfig())
    if fault := foreign_kind(contents.tensors, expected):
        raise ConfigError(f"{path}: {fault}")
    scores = layout_scores(contents.tensors, expected)
    layout = max(scores, key=lambda each: scores[each])
    if not scores[layout]:
        bare = layout_scores({f"{folder}/{name}" for folder in FOLDERS for name in contents.tensors}, expected)
        if bare["diffusers"]:
            raise ConfigError(
                f"{path}: holds only one network of a diffusers folder; give the folder that holds model_index.json"
            )
        names = printable(", ".join(list(contents.tensors)[:3])) or "none"
        raise ConfigError(
            f"{path}: no tensor has an SD 2.x name of MindONE, Stability or diffusers "
            f"(found {len(contents.tensors)}: {names}); give full SD 2.x weights"
        )
    return WeightSource(path, layout, contents.container, contents.tensors, record)


def weights_digest(path: Path) -> str:
    """Return the xxh3-128 digest, hexadecimal, of a file or of a diffusers folder's networks and scheduler.

    Raises OSError: when a file cannot be read.
    Raises ConfigError: when `path` is neither a folder nor a regular file.
    """
    files = [path]
    if not path.is_dir():
        require_regular(path)
    else:
        networks = [path / name for name in (*FOLDERS, "scheduler")]
        files = [file for network in networks for file in sorted(network.rglob("*")) if file.is_file()]
    digest = xxhash.xxh3_128()
    for each in files:
        with each.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def _open_folder(folder: Path) -> Contents:
    """Open a diffusers folder. Each name gets its network's folder as prefix.

    Names of the text encoder also get the "text_model." that transformers 5 leaves out.
    """
    if (folder / "text_encoder_2").is_dir():
        raise ConfigError(f"{folder}: holds SDXL weights (text_encoder_2); give SD 2.x weights")
    tensors: dict[str, StoredTensor] = {}
    containers = set()
    for network, stem in FOLDERS.items():
        contents = _open_network(folder / network, stem)
        containers.add(contents.container)
        for name, tensor in contents.tensors.items():
            full = f"{network}/{name}"
            if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) and network == "text_encoder":
                full = f"{TEXT_MODEL}{name}"
            tensors[full] = tensor
    record = folder / RECORD_FILE
    texts = {}
    if record.is_file():
        with record.open("rb") as file:
            texts[RECORD_KEY] = file.read(MOST_TEXT_BYTES).decode(errors="replace")
    return Contents("+".join(sorted(containers)), tensors, texts)


def _open_network(folder: Path, stem: str) -> Contents:
    """Open one network's file; prefer full precision to fp16, and safetensors to pickles."""
    for variant in ("", ".fp16"):
        whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if whole.is_file():
            return open_contents(whole)
        if index.is_file():
            return read_sharded(index)
    for variant in ("", ".fp16"):
        pickled = folder / f"{PICKLED.get(stem, stem)}{variant}.bin"
        if pickled.is_file():
            return open_contents(pickled)
    raise ConfigError(f"{folder}: no {stem}.safetensors, .fp16, .index.json or .bin; give a complete diffusers folder")
