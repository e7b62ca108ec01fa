"""Names of NPUs: the first generation is refused, the later ones are not."""

import pytest

from launcher.contract.npu_models import refused_model


@pytest.mark.parametrize(
    "name", ["ascend910", "Ascend910A", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA", "910A"]
)
def test_the_first_generation_is_refused_by_name(name):
    assert str(refused_model(name)).startswith(f"{name} is the first generation")


@pytest.mark.parametrize(
    "name", ["ascend910b", "Ascend910B1", "910B3", "Ascend910_9391", "ascend910_93", "Ascend310P3"]
)
def test_later_generations_are_not_refused(name):
    assert refused_model(name) is None
