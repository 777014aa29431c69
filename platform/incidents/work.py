"""Ticks of incidents. The rules of `tiering.work` hold here, too."""

from catalog.targets import Opener
from incidents import evaluate, mail


def watch_incidents(job: Opener, tenant_id: None) -> None:
    """Open and end incidents of all tenants by their rules. No Job row."""
    evaluate.run()


def mail_incidents(job: Opener, tenant_id: None) -> None:
    """Tell people of incidents by mail. No Job row."""
    mail.send()
