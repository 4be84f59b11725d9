"""Stages of a program as ONNX models, in three dialects.

A graph is translated by a table of functions, one per operator, into plain records; only `proto`
knows protobuf. Weights are named, never held: they are streamed from the program into one file of
external data beside the models.
"""
