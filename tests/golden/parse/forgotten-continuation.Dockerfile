FROM alpine
RUN apt-get update &&
    apt-get install -y curl &&
    rm -rf /var/lib/apt/lists
COPY --chwon=1 a /b
