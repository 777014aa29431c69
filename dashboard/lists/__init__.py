"""Lists of pages: searched, filtered, sorted, paged and saved as CSV, all in the address."""

from dashboard.lists.columns import Cell, Choice, Column
from dashboard.lists.listing import List

__all__ = ("Cell", "Choice", "Column", "List")
