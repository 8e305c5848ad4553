"""Stands for a library that takes seconds to import."""
