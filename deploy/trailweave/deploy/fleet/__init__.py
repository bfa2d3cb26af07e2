"""A simulated fleet of AI agents: reproducible sessions, with anomalies that it says it planted."""
