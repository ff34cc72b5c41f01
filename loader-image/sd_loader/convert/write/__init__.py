"""Writes planned files. Every byte is read, cast, digested and written once."""
