"""Writes planned files: bytes are read, cast, digested and written once."""
