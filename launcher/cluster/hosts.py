"""Defines machines and their NPUs as a cluster file names them."""

import ipaddress
import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from launcher.contract.config import Section

LOCAL_ADDRESSES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


class Device(Section):
    """One NPU. `vpred-launch ranktable generate --discover --to hosts` asks the hosts for all of it."""

    id: Annotated[int, Field(ge=0)]
    """Physical number: N of /dev/davinciN."""

    ip: str | None = None
    """Address of the NPU's own NIC, as `hccn_tool -i ID -ip -g` prints it.
    Several hosts need it, unless all are in one super-pod with HCCS between them."""

    super_device_id: Annotated[int, Field(ge=0)] | None = None
    """SDID of `npu-smi info -t spod-info`, on A3 only."""

    @field_validator("ip")
    @classmethod
    def _check_ip_is_an_address(cls, ip: str | None) -> str | None:
        if ip is not None:
            try:
                ipaddress.ip_address(ip)
            except ValueError:
                raise ValueError("must be an IPv4 or IPv6 address; `hccn_tool -i ID -ip -g` shows it") from None
        return ip


class Host(Section):
    """One machine as mpirun reaches it."""

    address: str
    """Host name or IP address that mpirun, ssh and the other hosts use. localhost for a single host."""

    devices: tuple[Device, ...] = ()
    """NPUs that ranks use, one rank each. Empty on cpu."""

    super_pod: Annotated[str, Field(min_length=1)] | None = None
    """Super-pod of the host, on A3 only: `Super Pod ID` of `npu-smi info -t spod-info`, or a label."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if not _HOSTNAME.fullmatch(address):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ValueError("must be a host name or an IP address") from None
        return address

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        ids = [device.id for device in self.devices]
        if len(set(ids)) != len(ids):
            raise ValueError(f"host {self.address}: the device ids {ids} repeat; each device takes one rank")
        without = [
            device.id for device in self.devices if (device.super_device_id is None) == (self.super_pod is not None)
        ]
        if without:
            raise ValueError(
                f"host {self.address}: device {without[0]}: super_pod and super_device_id come together (A3)"
            )
        return self
