"""Bridges to other libraries, each imported only by users of that library."""
