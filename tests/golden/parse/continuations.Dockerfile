FROM alpine
RUN one \
    # a comment goes, and so does the blank line

  two\
three \   
    four
ENV A=1 \
    B="two words" \
    C=three\ words
