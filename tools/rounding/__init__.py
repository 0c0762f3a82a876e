"""Operation by operation: transformers in half precision beside our emulation of it."""
