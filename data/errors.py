"""Defines the errors of this package."""


class DataError(Exception):
    """Reports a fault in the data. The message is ready to print and names file, row and remedy. Exit code 2."""


class SampleError(Exception):
    """Reports by its id a sample that cannot be made. The loader adds the sample's origin."""

    def __init__(self, sample_id: int, reason: str) -> None:
        super().__init__(f"sample {sample_id} {reason}")
        self.sample_id, self.reason = sample_id, reason
