"""Bridges to other libraries, each imported by nobody but who uses that library."""
