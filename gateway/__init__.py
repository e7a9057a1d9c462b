"""Gateway: the server that people and clients talk to. Loads neither torch nor transformers."""
