"""Places where jobs run: one module each, imported by name and only when used."""
