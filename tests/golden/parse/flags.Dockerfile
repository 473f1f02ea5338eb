FROM alpine
COPY --from=a --from=b x /y
COPY --link=maybe x /y
COPY --link= x /y
COPY --chown x /y
COPY --checksum=sha256:00 x /y
RUN --device=gpu true
RUN --network=hots true
RUN --security=none true
CMD --help
ARG --x a=b
