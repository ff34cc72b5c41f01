"""Typed, read-only views of the Kubernetes objects that the package `rules` decides about."""
