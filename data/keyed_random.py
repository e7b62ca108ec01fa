"""Draws randomness that belongs to a sample, whatever rank or process draws it (Salmon et al. 2011, Philox)."""

import numpy as np
from numpy.typing import NDArray

# A stream's number never changes, since that would change every run.
STREAMS = {
    "shuffle": 0,
    "augment": 1,
    "caption_drop": 2,
    "diffusion": 3,
    "posterior": 4,
    "strata": 5,
    "hold_out": 6,
    "validation": 7,
    "mixture": 8,
    "buckets": 9,
    "caption": 10,
}


def sample_generator(seed: int, stream: str, epoch: int, sample_id: int) -> np.random.Generator:
    """Return a generator keyed by all four arguments. Equal keys give equal draws, in any order and on any machine."""
    key = np.array([seed, STREAMS[stream]], np.uint64)
    # The counter's low words count the draws. Sample and epoch are the high words, so that streams never overlap.
    counter = np.array([0, 0, sample_id, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def batch_generator(seed: int, samples_seen: int) -> np.random.Generator:
    """Return the generator of draws that a global batch divides among its samples.

    samples_seen: the clock after the batch, which is the key.
    """
    return sample_generator(seed, "strata", 0, samples_seen)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16), modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
