"""What an agent carries: the Recorder, its transports, and adapters of outside formats."""
