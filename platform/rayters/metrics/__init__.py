"""How good is a prediction, an estimated annotator, a probability. Every metric names its definition; IGNORE never
counts.
"""
