"""The operator's process: how it starts, what it watches, who leads, and how it is probed."""
