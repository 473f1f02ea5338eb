RUN true
COPY a /b
