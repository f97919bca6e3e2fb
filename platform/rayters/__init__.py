"""Rayters trains, searches and serves segmentation models from annotators who disagree.

Two questions are two independent axes here: a *gaze* decides what the network gets to see at a location, a *method* decides
whom it believes. Any gaze composes with any method.
"""
