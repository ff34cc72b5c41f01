"""Diffusers repos: their index, their components and the files of these."""
