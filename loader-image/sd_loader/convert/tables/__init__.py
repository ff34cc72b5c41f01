"""Data of each architecture: key tables, dimensions and configs."""
