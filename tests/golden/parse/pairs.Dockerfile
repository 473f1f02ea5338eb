FROM alpine
ENV a=1 b # why
ENV =1
LABEL a=b =c
ARG =
