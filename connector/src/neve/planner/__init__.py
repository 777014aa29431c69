"""Whether to load or compute KV: arithmetic, measurements and the choice. Imports no engine."""
