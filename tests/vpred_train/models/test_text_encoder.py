"""Tokens of 500 captions and the features of a small text tower against open_clip (tests/golden/make_text.py)."""

import json

import numpy as np
from mindspore import Tensor

from golden.seeded import weights
from support import GOLDEN
from vpred_train.config.model import TextEncoderConfig
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.models.text_encoder import TextEncoder
from vpred_train.text.tokenizer import Tokenizer


def test_tokens_of_500_captions_equal_open_clips() -> None:
    captions = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
    expected = np.load(GOLDEN / "text.npz")["tokens"]
    found = Tokenizer(77)(captions)
    wrong = [caption for caption, row, right in zip(captions, found, expected, strict=True) if (row != right).any()]
    assert len(captions) == 500
    assert wrong == []


def test_features_equal_open_clips_penultimate_layer() -> None:
    golden = np.load(GOLDEN / "text.npz")
    expected = golden["features"]
    config = TextEncoderConfig(width=expected.shape[-1], heads=2, layers=2)
    encoder = TextEncoder(config, np.random.default_rng(0))
    space = FlatSpace(encoder)
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    found = encoder(Tensor(golden["tokens"][: len(expected)].astype(np.int32))).asnumpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
