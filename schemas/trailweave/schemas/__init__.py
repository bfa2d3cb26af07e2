"""The contracts: event schemas, topics, the codec and the errors. Everyone may import this room."""
