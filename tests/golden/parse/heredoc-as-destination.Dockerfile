FROM alpine
COPY a <<E
x
E
