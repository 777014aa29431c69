"""Load KV or compute it: arithmetic, measurements and the choice. No engine here."""
