FROM alpine
HEALTHCHECK CDM true
HEALTHCHECK NONE really
HEALTHCHECK --interval=soon CMD true
HEALTHCHECK --timeout=5us CMD true
HEALTHCHECK --retries=-1 CMD true
HEALTHCHECK --retries=few CMD true
HEALTHCHECK CMD []
