"""Make captions.json and text.npz: what open_clip 3.3.0 (torch 2.13.0) makes of 500 captions and of a small text tower.

pip install torch==2.13.0 open_clip_torch==3.3.0 ftfy regex && python tests/golden/make_text.py
"""

import csv
import itertools
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

# The package's own start imports torchvision, which text does not need: its folder alone serves.
package = ModuleType("open_clip")
package.__path__ = list(find_spec("open_clip").submodule_search_locations)
sys.modules["open_clip"] = package
for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
    sys.modules.setdefault(name, MagicMock())

from open_clip.tokenizer import SimpleTokenizer  # noqa: E402
from open_clip.transformer import TextTransformer  # noqa: E402
from seeded import weights  # noqa: E402

HERE = Path(__file__).parent
WIDTH, HEADS, LAYERS, LENGTH = 32, 2, 2, 77

ODD = [
    "",
    " ",
    "a",
    "1,000 characters: " + "ab c" * 246,
    "crème brûlée, façade, naïve Ångström, żółć, İstanbul ß",
    "一只戴着帽子的猫",
    "寿司とビール 🍣🍺",
    "👩‍🚀 on the moon 🌕🏳️‍🌈",
    "Привет, мир!",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "salt &amp;amp; pepper &lt;b&gt;bold&lt;/b&gt; &eacute;",
    "âœ” fixed mojibake: cafÃ© and â€œquotesâ€\x9d",
    "don't, I'll, we've, it's, they're, I'm, he'd, cats' DON'T",
    "12345 67.89 1/2 ½ x² H₂O № 5",
    "tabs\tand\nnew\r\nlines   and\u3000wide spaces\u00a0here",
    "!!!??? ... --- ((())) [[x]] {y} <z> #tag @user $5 100%",
    "<start_of_text> inside <end_of_text>",
    "UPPER lower MiXeD CamelCase snake_case kebab-case",
    "ﬁne ﬂuid Ⅷ ﷺ ℡ ①",
    "e\u0301 combining versus é",
    "zero\u200bwidth and soft\u00adhyphen",
    "https://example.org/a?b=c&d=e",
    "supercalifragilisticexpialidocious " * 12,
    "\ud7ff\uffee ∑∫√∞≈≠ ←↑→↓",
]
STYLES = ["a photo of", "an oil painting of", "a 3D emoji of", "Close-up:", "très joli", "水彩画的", "🎨"]
ENDINGS = ["", ", 4k, highly detailed", " by the sea!", " (1987)", " — nº 7", " 🌅"]


def captions() -> list[str]:
    """500 captions: odd ones, the bundled ones, and combinations."""
    with (HERE.parents[1] / "data/fluent_emoji/img_txt.csv").open(newline="", encoding="utf-8") as file:
        bundled = [row["text"] for row in csv.DictReader(file)]
    subjects = [text.removeprefix("a 3D emoji of ") for text in bundled] + ODD[4:16]
    combined = [f"{style} {subject}{ending}" for style, subject, ending in itertools.product(STYLES, subjects, ENDINGS)]
    chosen = [*ODD, *bundled, *combined[:: len(combined) // 460]]
    return list(dict.fromkeys(chosen))[:500]


def penultimate(tokens: np.ndarray, width: int, heads: int, layers: int) -> np.ndarray:
    """Features of a seeded tower after `layers` of its `layers` + 1 blocks: the last block is not used."""
    tower = TextTransformer(context_length=LENGTH, width=width, heads=heads, layers=layers + 1, output_dim=width)
    state = {name: torch.from_numpy(weights(name, tuple(old.shape))) for name, old in tower.state_dict().items()}
    tower.load_state_dict(state)
    tower.eval()
    with torch.no_grad():
        x = tower.token_embedding(torch.from_numpy(tokens).long()) + tower.positional_embedding
        for block in tower.transformer.resblocks[:-1]:
            x = block(x, attn_mask=tower.attn_mask)
        return tower.ln_final(x).numpy()


def main() -> None:
    texts = captions()
    assert len(texts) == 500
    tokens = SimpleTokenizer(context_length=LENGTH)(texts).numpy().astype(np.int32)
    if sys.argv[1:]:  # the file for compare_full_size.py
        np.savez_compressed(sys.argv[1], tokens=tokens[:4], features=penultimate(tokens[:4], 1024, 16, 23))
        return
    features = penultimate(tokens[:16], WIDTH, HEADS, LAYERS)
    (HERE / "captions.json").write_text(json.dumps(texts, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "text.npz", tokens=tokens.astype(np.uint16), features=features)


if __name__ == "__main__":
    main()
