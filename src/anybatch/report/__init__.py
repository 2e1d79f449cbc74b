"""Records in, one self-contained HTML page and terminal tables out; no figure is computed here."""
