"""View models: what the templates print, shared by all web frameworks.

Pure functions turn query results and the current time into dataclasses of finished text, one module per page. The
templates decide only the layout.
"""
