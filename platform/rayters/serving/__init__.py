"""Trained models that answer requests: a registry, a guard, a Ray Serve application and a page to look at."""
