"""How users write steps and pipelines: Python functions in, a `core.graph.Graph` out.

Imports the standard library, the core and the errors only, so that a file with a `@step` loads in no
time wherever it is imported: in a script, in a notebook, in a worker that looks for one function.
"""
