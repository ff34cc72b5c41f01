"""What a diffusers repo is: its index, its components and their files."""
