"""The transformer, attention over packs, and sampling."""
