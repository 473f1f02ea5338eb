FROM alpine
RUN a \
  b
COPY <<E /x
y
E
