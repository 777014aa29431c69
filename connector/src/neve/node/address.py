"""Address of a tenant's Valkey, from the handshake to the transport."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TlsSettings:
    """`ca_file` None: the host's own authorities. `server_name` None: the connected host's name.

    `certificate_file` and `key_file` (PEM): for servers that require a client certificate.
    """

    ca_file: str | None = None
    server_name: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True)
class ValkeyAddress:
    """The tenant's Valkey servers, and this node's credentials there.

    `seeds`: "host:port" or "unix:/path"; alternative addresses of one server, or some nodes of a
    cluster. `tls`: True means `TlsSettings()`.
    """

    seeds: tuple[str, ...]
    tls: bool | TlsSettings = False
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"ValkeyAddress(seeds={self.seeds}, username={self.username!r})"
