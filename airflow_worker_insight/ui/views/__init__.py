"""View models: what the templates print, shared by all web frameworks.

Pure functions turn query results and the current time into dataclasses, one module per page: rows of the store, and
texts that depend on several values. The templates decide the layout and format single values.
"""
