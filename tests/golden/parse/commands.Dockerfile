FROM alpine
SHELL ["/bin/sh", "-ec"]
RUN ["echo", "a\tb\u00e9"]
RUN [ -d /tmp ] && echo ["not json"]
RUN --mount=type=cache,target=/c --mount=type=bind,"source=a b",target=/b --network=none make --all
RUN -- --not-a-flag
CMD
ENTRYPOINT []
COPY ["not", "closed"
HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f http://localhost/
HEALTHCHECK NONE
