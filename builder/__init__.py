"""The act of building: plan, lower, perform, export.

One build, from top to bottom of `build.build`:

    context     the Dockerfile and the files beside it          fetch, remotes: those from elsewhere
    plan        the stages that are needed                      origins: whom --from means; platforms
    bases       the images that they stand on                   host: made of this machine; archives: read from files
    transfers   images from and to registries                   registries, logins: what the user says of them
    handlers    each instruction lowered to a state and a step; then how steps are performed
    survey      what there is to warn of                        lint: one function for each check
    engine      each step looked up or performed                assembly: what came out, as an image's config
    runner      RUNs                                            executors, sandbox, isolation: where they run; agents
    export      the outputs                                     flatten: layers put together

and `cli` in front of it, which alone reads the environment, prints and ends the process; `terminal` draws for it.

Who imports whom, from the bottom: model, errors, sandbox; events, plan, context, executors; handlers; engine; export;
cli. A test holds it. Two things are not as they were first drawn. Values are `msgspec.Struct`s and not dataclasses:
there are more than a hundred kinds, and making the classes cost as much at each start as all the rest together. What
RUN needs is a room of its own, `runner`, and not a part of the engine: a build without a RUN to run never loads it.
"""
