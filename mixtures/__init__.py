"""Mixtures that come with the library: each module registers what it defines when it is imported."""
