"""Annotators: simulated ones, what they agree on, one layer from many. numpy, scipy, SimpleITK; no torch."""
