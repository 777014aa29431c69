"""Where the router's log goes."""

import logging


def log_to_stderr() -> None:
    """Neve's events from INFO on; of others warnings, as httpx would log each request."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("neve").setLevel(logging.INFO)
