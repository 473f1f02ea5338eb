FROM alpine
COPY << E /x
x
E
