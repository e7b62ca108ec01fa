"""Reads the file of those who may scrape, and makes its lines: `python -m monitoring.users NAME`.

A line is NAME:pbkdf2_sha256$ITERATIONS$SALT$HASH, SALT and HASH in hexadecimal (RFC 8018, section 5.2). Empty lines and
lines that begin with # are skipped.
"""

import argparse
import base64
import getpass
import hashlib
import hmac
import os
import re
import threading
from pathlib import Path

from monitoring.errors import MonitorError

ITERATIONS = 600_000
_LINE = re.compile(r"([^:\s]+):pbkdf2_sha256\$([1-9]\d{0,7})\$([0-9a-f]{16,})\$([0-9a-f]{64})")


class Users:
    """Knows the hashes of passwords by user name."""

    def __init__(self, hashes: dict[str, tuple[int, bytes, bytes]]) -> None:
        self._hashes = hashes
        # A scrape every 15 s must not cost the trainer a slow hash each time.
        self._known: set[bytes] = set()
        self._one_at_a_time = threading.Lock()  # who guesses must not take the trainer's cores

    def knows(self, authorization: str) -> bool:
        """Return whether an Authorization header (RFC 7617) has the name and the password of a user."""
        kind, _, encoded = authorization.partition(" ")
        if kind.lower() != "basic":
            return False
        digest = hashlib.sha256(encoded.encode()).digest()
        if any(hmac.compare_digest(digest, each) for each in self._known):
            return True
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return False
        if name not in self._hashes:
            return False
        iterations, salt, expected = self._hashes[name]
        with self._one_at_a_time:
            found = _hash(password, salt, iterations)
        if not hmac.compare_digest(found, expected):
            return False
        self._known.add(digest)
        return True


def read_users(path: Path) -> Users:
    """Read the file. Raises MonitorError: when it cannot be read, has a line of another form, or no user."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise MonitorError(f"{path}: cannot be read ({error}); set cluster.metrics.users_file to another") from None
    hashes = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise MonitorError(f"{path}:{number}: is no NAME:HASH; make the line with python -m monitoring.users NAME")
        name, iterations, salt, expected = found.groups()
        hashes[name] = int(iterations), bytes.fromhex(salt), bytes.fromhex(expected)
    if not hashes:
        raise MonitorError(f"{path}: names no user; make a line with python -m monitoring.users NAME")
    return Users(hashes)


def line_of(name: str, password: str, salt: bytes) -> str:
    """Return the line of a user."""
    return f"{name}:pbkdf2_sha256${ITERATIONS}${salt.hex()}${_hash(password, salt, ITERATIONS).hex()}"


def main() -> None:
    """Ask for a password, and print the line of a user."""
    parser = argparse.ArgumentParser(prog="monitoring.users", description="make a line for cluster.metrics.users_file")
    parser.add_argument("name")
    name: str = parser.parse_args().name
    if not re.fullmatch(r"[^:\s#][^:\s]*", name):
        parser.error(f"name: found {name!r}; give one without colons and blanks")
    print(line_of(name, getpass.getpass("Password: "), os.urandom(16)))


def _hash(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)


if __name__ == "__main__":
    main()
