"""Files: read with nothing taken on trust, written whole or not at all."""
