"""Knows which NPUs cannot train here."""

import re

# Names of CANN (Ascend910A, Ascend910ProB ...), of MindSpore (ascend910) and of npu-smi (910A). Later generations have
# a further digit or another letter: Ascend910B3, ascend910b, Ascend910_9391. `Ascend910B` alone is a first one of CANN,
# but MindSpore's name of the second generation, so it is not refused.
_FIRST_GENERATION = re.compile(r"(ascend)?[ _]?910(a|pro[ab]|premiuma)?", re.IGNORECASE)


def refused_model(name: str) -> str | None:
    """Return why the NPU called `name` is refused, None for one that may be used."""
    if not _FIRST_GENERATION.fullmatch(name.strip()):
        return None
    return (
        f"{name.strip()} is the first generation of Ascend 910: it has no bfloat16 and no flash attention, its float16 "
        "saturates, and it computes float32 products in float16"
    )
