FROM alpine
CMD [1, "a"]
COPY ["a"]
SHELL sh -c
SHELL ['sh', '-c']
ENTRYPOINT ["a", null]
