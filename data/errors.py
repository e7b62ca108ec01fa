"""The user's mistakes in this room."""


class DataError(Exception):
    """A fault in the data; the message is ready to print and names file, row and remedy. Exit code 2."""


class SampleError(Exception):
    """A sample that cannot be made, by its id; the loader adds where it comes from."""

    def __init__(self, sample_id: int, reason: str) -> None:
        super().__init__(f"sample {sample_id} {reason}")
        self.sample_id, self.reason = sample_id, reason
