"""Diffusers repos: their index, their components and the components' files."""
