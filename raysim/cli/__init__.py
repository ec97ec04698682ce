"""The `raysim` command: its parser and one module per subcommand."""
