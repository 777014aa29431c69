"""What the processes of a trial have loaded before they are forked, so that a start costs 20 ms."""

import logging

import django

django.setup()

from storage import s3  # noqa: E402
from torture import node, worker  # noqa: E402, F401

logging.disable(logging.CRITICAL)  # trouble is the purpose, and failures are told over the wire
s3.client()  # makes no connection; boto3's models take 0.2 s to load
