"""Model code that travels inside every checkpoint: flat, self-contained, loaded by `trust_remote_code`."""
