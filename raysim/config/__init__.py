"""From configuration files and command-line overrides to checked dataclasses."""
