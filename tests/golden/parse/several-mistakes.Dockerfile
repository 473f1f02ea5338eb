FROM alpine AS 1st
ENV A
COPY only
RUN --netwrok=none true
USER
RUN true
FORM scratch
