"""Makes the keys with which the pods of one job reach each other."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from launcher.contract.config import ConfigError


def make_keys() -> dict[str, str]:
    """Make a user's key and a host's key (ed25519). Returns the texts of the files that a pod finds them in.

    Raises ConfigError: when ssh-keygen is missing or fails.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError(
            "ssh-keygen: found none on PATH", "install it, on Debian and Ubuntu: apt-get install openssh-client"
        )
    with tempfile.TemporaryDirectory(prefix="vpred-keys-") as folder:  # nobody else can read it
        user, host = Path(folder) / "id_ed25519", Path(folder) / "host_ed25519"
        for path in (user, host):
            argv = [program, "-q", "-t", "ed25519", "-N", "", "-C", "vpred", "-f", str(path)]
            answer = subprocess.run(argv, capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                raise ConfigError(f"{program}: failed ({answer.stderr.strip()})", "look at its words")
        return {
            "id_ed25519": user.read_text(),
            "authorized_keys": user.with_suffix(".pub").read_text(),
            "host_ed25519": host.read_text(),
            # All pods have the same host key, whatever their names and addresses are.
            "known_hosts": f"* {host.with_suffix('.pub').read_text()}",
        }
