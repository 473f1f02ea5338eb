# syntax=docker/dockerfile:1
# check=skip=all

# The version that everybody gets.
ARG VERSION=1.2 EMPTY= BARE
FROM --platform=$BUILDPLATFORM golang:${VERSION} AS Build

WORKDIR /src
FROM scratch
COPY --from=build --chown=1000:1000 --link /src/app /
# the end
