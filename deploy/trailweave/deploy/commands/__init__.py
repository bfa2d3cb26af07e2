"""The click commands, one module per subject. They parse and print; the work is elsewhere."""
