"""Outside formats -> events: OTLP, OPA decision logs, OpenBao/Vault audit lines, MCP. Pure."""
