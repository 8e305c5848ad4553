"""Is made for a themis-core that does not exist."""

raise AssertionError("it must not be imported")
