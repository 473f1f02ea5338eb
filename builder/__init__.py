"""The act of building: plan, lower, perform, export.

Order of rooms, each importing only what stands before it: model, errors, sandbox; events, plan, context, executors;
handlers; engine; export; cli. Nothing imports cli.
"""
