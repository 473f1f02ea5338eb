FROM alpine
COPY --link \
     # where the caret has to point
     --chmod=644 \
     --form=build \
     a /b
