"""The command line, the settings and the embedded engines. This room may import all others."""
