"""A folder a page: its view, its selector (what it reads), its templates."""
