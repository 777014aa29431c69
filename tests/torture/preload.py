"""Modules loaded before a trial's processes are forked, so that a start takes 20 ms."""

import logging

import django

django.setup()

from storage import s3  # noqa: E402
from torture import node, worker  # noqa: E402, F401

logging.disable(logging.CRITICAL)  # trouble is the purpose, and failures are told over the wire
s3.client()  # makes no connection; boto3's models take 0.2 s to load
