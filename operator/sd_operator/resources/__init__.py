"""Typed, read-only views of the Kubernetes objects that the rules read."""
