import hashlib
import hmac

from django.apps import AppConfig
from django.conf import settings

from neve.formats.keys import hide_books


class StorageConfig(AppConfig):
    name = "storage"

    def ready(self) -> None:
        pepper = settings.ENV.key_pepper.encode()
        hide_books(hmac.new(pepper, b"valkey books", hashlib.sha256).hexdigest()[:32])
