"""Computes a shuffle without storing it: the place of one index needs no list of all indices."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from data.keyed_random import mixed

ROUNDS = 16  # fewer leave the permutations of five or six samples measurably unequal


class Permutation:
    """Permutes 0 .. size - 1 by a keyed bijection, in constant memory.

    It is a generalised Feistel cipher (Black and Rogaway 2002, Ciphers with arbitrary finite domains, section 5). An
    index is a cell in a table of `rows` x `columns`. A round shifts the row by a hash of the column, or the column by a
    hash of the row. The table has a few cells in excess; an index that lands there is enciphered again until it is
    below `size`.
    """

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self.size = size
        self.rows = np.uint64(isqrt(size - 1) + 1)
        self.columns = np.uint64(-(-size // int(self.rows)))
        self.keys = generator.integers(0, 2**64, ROUNDS, np.uint64)

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of `indices` (n,) under the permutation, each in 0 .. size - 1."""
        places = self._encipher(indices.astype(np.uint64))
        while (outside := places >= self.size).any():
            places[outside] = self._encipher(places[outside])
        return places.astype(np.int64)

    def _encipher(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        row, column = cells // self.columns, cells % self.columns
        for key in self.keys.reshape(-1, 2):
            row = (row + mixed(column ^ key[0]) % self.rows) % self.rows
            column = (column + mixed(row ^ key[1]) % self.columns) % self.columns
        return row * self.columns + column
