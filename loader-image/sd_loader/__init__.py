"""The loader: downloads, converts, verifies and publishes one model."""
