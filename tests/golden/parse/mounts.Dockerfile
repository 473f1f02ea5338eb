FROM alpine
RUN --mount=from=$STAGE,target=/x true
RUN --mount=type=bind,\"source=a true
RUN --mount= true
