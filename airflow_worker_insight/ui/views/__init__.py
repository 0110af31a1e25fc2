"""The view model: what the templates print, decided here once for all web frameworks.

Pure functions from what the store returns and the time to dataclasses of finished text, one module for each page. The
templates decide nothing but the place of things.
"""
