"""Explains HCCL's error codes as a rank's log shows them: the meaning of each, and where to look.

Meanings follow the fault codes of Huawei's CANN documentation. They were never seen on an NPU.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class HcclCode:
    """Explains one code.

    blames_peer: the rank that reports it suffers from another rank's fault
    """

    meaning: str
    hint: str
    blames_peer: bool = False


HCCL_CODES: dict[str, HcclCode] = {
    "EI0001": HcclCode("an environment variable or IP family is invalid", "compare HCCL_* and IPv4/IPv6 on all hosts"),
    "EI0002": HcclCode("a wait for another rank timed out", "find the rank that failed or hung first", True),
    "EI0004": HcclCode("the rank table cannot be read", "check path, permissions and JSON"),
    "EI0005": HcclCode("ranks called different collectives", "same code, recipe and versions on every host"),
    "EI0006": HcclCode(
        "a socket to another rank timed out",
        "did that rank start? then HCCL_CONNECT_TIMEOUT, the network interface, a firewall, visible devices",
        True,
    ),
    "EI0011": HcclCode("no device memory for HCCL", "a smaller batch, or a smaller HCCL_BUFFSIZE (needed twice)"),
    "EI0012": HcclCode("an SDMA transfer failed", "check the device's health: npu-smi info"),
    "EI0013": HcclCode("a RoCE transfer failed", "check link and switch: hccn_tool -i ID -link -g, -net_health -g"),
    "EI0014": HcclCode("a value in the rank table is wrong", "validate the table against the devices' addresses"),
    "EI0015": HcclCode(
        "the ranks did not find each other", "are all ranks up? which network: HCCL_SOCKET_IFNAME", True
    ),
    "EI0016": HcclCode("the TLS switch differs between devices", "hccn_tool -i ID -tls -g on every host"),
    "EI0017": HcclCode("a key in the rank table is missing or no text", "validate the table"),
    "EI0019": HcclCode("a port is taken", "a process left over on ports 60000-60031 or 16666? end it"),
}
_FORMER = {"EJ0003": "EI0019"}
_CODE = re.compile(r"\b(?:EI\d{4}|EJ0003)\b")


def find_code(text: str) -> str | None:
    """Return the first code in `text` that the table has, by its present name."""
    codes = (_FORMER.get(found, found) for found in _CODE.findall(text))
    return next((code for code in codes if code in HCCL_CODES), None)
