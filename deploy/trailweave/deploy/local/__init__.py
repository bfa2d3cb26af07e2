"""Kafka and ClickHouse embedded: the real engines, as child processes, without Docker or a server.

`engines` is what others use.
"""
