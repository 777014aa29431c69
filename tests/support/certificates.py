"""Certificate authorities and certificates for tests, made by the openssl command."""

import subprocess
from pathlib import Path


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_ca(folder: Path, name: str) -> Path:
    """Make a certificate authority: `name`.crt and `name`.key."""
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"),
    )
    return folder / f"{name}.crt"


def issue(folder: Path, ca: str, name: str, alternatives: str) -> None:
    """Make `name`.crt and `name`.key, signed by `ca`. `alternatives`: e.g. "DNS:a.test,IP:::1"."""
    (folder / f"{name}.ext").write_text(f"subjectAltName={alternatives}\n")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr"),
    )
    openssl(
        *("x509", "-req", "-in", folder / f"{name}.csr", "-days", "2", "-CAcreateserial"),
        *("-CA", folder / f"{ca}.crt", "-CAkey", folder / f"{ca}.key"),
        *("-extfile", folder / f"{name}.ext", "-out", folder / f"{name}.crt"),
    )
