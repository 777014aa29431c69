"""Addresses of several servers in one URL. Pure: the settings read it before Django starts."""

from urllib.parse import urlsplit


def each_url(url: str) -> list[str]:
    """`valkey://:password@a:1,b:2/0`, which names several servers, as one URL for each."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{login}{at}{host}").geturl() for host in hosts.split(",")]
