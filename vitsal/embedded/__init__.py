"""Embedded: the weights of three small ViTs and four students, and the scripts that train them again."""
