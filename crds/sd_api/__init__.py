"""The contract between operator, loader, gateway and users: one source of truth."""
