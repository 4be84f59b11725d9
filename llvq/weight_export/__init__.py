"""Weights of a program in the files of other tools: names, bytes and configs as they read them."""
