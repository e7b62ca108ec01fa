"""Machines and their NPUs as a cluster file names them."""

import ipaddress
import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from launcher.contract.config import Section

LOCAL_ADDRESSES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


class Device(Section):
    """One NPU: `id` is the physical number (/dev/davinciN), `ip` that of its own NIC (hccn_tool).

    `super_device_id`: A3 only, SDID of `npu-smi info -t spod-info`.
    """

    id: Annotated[int, Field(ge=0)]
    ip: str | None = None
    super_device_id: Annotated[int, Field(ge=0)] | None = None

    @field_validator("ip")
    @classmethod
    def _is_an_address(cls, ip: str | None) -> str | None:
        if ip is not None:
            try:
                ipaddress.ip_address(ip)
            except ValueError:
                raise ValueError("must be an IPv4 or IPv6 address; `hccn_tool -i ID -ip -g` tells it") from None
        return ip


class Host(Section):
    """One machine as mpirun reaches it. `devices` on accelerators; on cpu `workers_per_host` counts.

    `super_pod`: A3 only, the super-pod that it lies in (`Super Pod ID` of npu-smi, or a label).
    """

    address: str
    devices: tuple[Device, ...] = ()
    super_pod: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("address")
    @classmethod
    def _is_a_host(cls, address: str) -> str:
        if not _HOSTNAME.fullmatch(address):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ValueError("must be a host name or an IP address") from None
        return address

    @model_validator(mode="after")
    def _devices_differ(self) -> Self:
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
